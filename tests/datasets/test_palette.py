from fsa_seg.datasets.palette import even_palette


def test_colours_differ_and_are_bytes():
    for count in (1, 2, 7, 60, 200):
        palette = even_palette(count)
        assert len(palette) == len(set(palette)) == count
        assert all(len(color) == 3 and all(0 <= channel <= 255 for channel in color) for color in palette)
    assert even_palette(2) == [(255, 38, 38), (25, 166, 166)]
