import pytest
import torch

from fsa_seg.ops.windows import Layout, OverlapAdd, Window, cut_window, window_spans, windows
from fsa_seg.profiling.measured import tensor_peak


def test_spans_start_at_multiples_and_the_last_is_shifted_inside():
    assert window_spans(10, 4, 3) == [(0, 4), (3, 7), (6, 10)]
    assert window_spans(5, 4, 3) == [(0, 4), (1, 5)]
    assert window_spans(3, 4, 3) == [(0, 3)]  # smaller than the window: one window of its own size
    assert len(window_spans(448, 224, 112)) * len(window_spans(896, 224, 112)) == 3 * 7


def added(image, window_cosines, window, stride, multiple=(1, 1), size=None):
    """Return the `OverlapAdd` of an image's windows, under a stand-in for a model."""
    shape = tuple(image.shape[1:])
    overlap = OverlapAdd(Layout(shape, size or shape, window, stride, multiple))
    for rows, columns in windows(*shape, window, stride):
        cosines, grid = window_cosines(cut_window(image, rows, columns, multiple, window == 0))
        overlap.add(Window(rows, columns, cosines[0], grid))
    return overlap


def slide(*arguments, **options):
    return added(*arguments, **options).strip()()


def mean_color(images):
    """A stand-in for a model: 'cosines' of 2×2 patches are their mean colours (Q = 3)."""
    pooled = torch.nn.functional.avg_pool2d(images, 2)
    return pooled.flatten(2).transpose(1, 2), tuple(pooled.shape[2:])


def test_overlap_add_by_hand():
    """Two windows that say 1 and 3 share a column: there the mean, elsewhere each its own."""
    seen = []

    def constant(images):
        seen.append(tuple(images.shape))
        return torch.full((1, 1, 1), 1.0 if len(seen) == 1 else 3.0), (1, 1)

    cosines = slide(torch.zeros(3, 2, 3), constant, window=2, stride=1)
    assert seen == [(1, 3, 2, 2)] * 2
    assert cosines.tolist() == [[[1, 2, 3], [1, 2, 3]]]


def direct(image, window_cosines, window, stride, size):
    """The protocol's steps one by one, on whole maps: resize, sum, divide by coverage, resize."""
    height, width = image.shape[1:]
    total, count = torch.zeros(3, height, width), torch.zeros(height, width)
    for top, bottom in window_spans(height, window, stride):
        for left, right in window_spans(width, window, stride):
            cosines, grid = window_cosines(image[None, :, top:bottom, left:right])
            cosines = cosines.transpose(1, 2).unflatten(2, grid)
            total[:, top:bottom, left:right] += torch.nn.functional.interpolate(
                cosines, (bottom - top, right - left), mode='bilinear'
            )[0]
            count[top:bottom, left:right] += 1
    return torch.nn.functional.interpolate((total / count)[None], size, mode='bilinear')[0]


@pytest.mark.parametrize('size', [(14, 20), (9, 31), (40, 13)])
@pytest.mark.parametrize('window, stride', [(8, 4), (8, 6), (6, 6), (20, 4)])
def test_slide_equals_the_steps_one_by_one(window, stride, size):
    torch.manual_seed(0)
    image = torch.rand(3, 14, 20)
    torch.testing.assert_close(
        slide(image, mean_color, window, stride, size=size),
        direct(image, mean_color, window, stride, size),
        atol=1e-6,
        rtol=1e-5,
    )


@pytest.mark.parametrize('most', [1, 60, 400, 10**6])
def test_tiles_are_parts_of_the_whole(most):
    """They cover each pixel once, and are as small as was asked for."""
    torch.manual_seed(0)
    image = torch.rand(3, 14, 20)
    whole = slide(image, mean_color, 8, 6, size=(37, 21))
    joined, covered = torch.empty_like(whole), torch.zeros(37, 21)
    for place, tile in added(image, mean_color, 8, 6, size=(37, 21)).tiles(most):
        joined[(slice(None), *place)] = tile
        covered[place] += 1
        assert tile.numel() <= max(most, 3)
    torch.testing.assert_close(joined, whole, atol=1e-6, rtol=1e-6)
    assert (covered == 1).all()


def test_what_an_image_holds_does_not_grow_with_its_size():
    """Cosines of all windows, one tile of the result and what a strip holds: 1 % of the result."""
    torch.manual_seed(0)
    cosines = added(torch.rand(3, 14, 20), mean_color, 8, 6, size=(200, 300))
    most = 4000

    def run():
        for _, _ in cosines.tiles(most):
            pass

    assert tensor_peak(run, 'cpu') < 4 * 6 * most < 4 * 3 * 200 * 300 / 5


def test_one_window_as_large_as_the_image_equals_no_windows():
    image = torch.rand(3, 8, 12)
    whole, grid = mean_color(image[None])
    expected = torch.nn.functional.interpolate(whole.transpose(1, 2).unflatten(2, grid), (8, 12), mode='bilinear')[0]
    torch.testing.assert_close(slide(image, mean_color, window=12, stride=5), expected)


def test_slide_transposes():
    image = torch.rand(3, 10, 16)
    turned = slide(image.transpose(1, 2), mean_color, window=8, stride=4).transpose(1, 2)
    torch.testing.assert_close(slide(image, mean_color, window=8, stride=4), turned)


def test_padding_is_even_zero_and_cropped_back():
    sizes = []

    def record(images):
        sizes.append(images.shape[2:])
        assert images[0, :, :1].abs().sum() == 0 and images[0, :, -2:].abs().sum() == 0  # 3 rows: 1 above, 2 below
        return mean_color(images)

    cosines = slide(torch.ones(3, 5, 8), record, window=8, stride=4, multiple=(8, 8))
    assert cosines.shape == (3, 5, 8) and sizes == [(8, 8)]
    assert cosines[0, 2, 4] == 1


@pytest.mark.parametrize('shape, grid', [((37, 70), (2, 4)), ((32, 64), (2, 4)), ((40, 9), (2, 1))])
def test_a_window_of_0_is_the_whole_image(shape, grid):
    """Patches that do not fit are left out at the right and below, and the others are stretched over the image."""
    torch.manual_seed(0)
    image, seen = torch.rand(3, *shape), []

    def patches_of_16(images):
        seen.append(images)
        pooled = torch.nn.functional.avg_pool2d(images, 16)
        return pooled.flatten(2).transpose(1, 2), tuple(pooled.shape[2:])

    cosines = slide(image, patches_of_16, window=0, stride=7, multiple=(16, 16), size=(50, 60))
    (pixels,) = seen
    assert pixels.shape[2:] == (grid[0] * 16, grid[1] * 16)
    height, width = (min(side, kept) for side, kept in zip(shape, pixels.shape[2:]))
    if shape[1] >= 16:
        assert torch.equal(pixels[0], image[:, :height, :width])
        small = torch.nn.functional.avg_pool2d(pixels, 16)
        stretched = torch.nn.functional.interpolate(small, shape, mode='bilinear')
        expected = torch.nn.functional.interpolate(stretched, (50, 60), mode='bilinear')[0]
        torch.testing.assert_close(cosines, expected, atol=1e-6, rtol=1e-6)
    assert cosines.shape == (3, 50, 60)
