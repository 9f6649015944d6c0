import os

import pytest
import torch
import torch.nn.functional as F

from fsa_seg.ops.windows import (
    Layout,
    OverlapAdd,
    PixelMap,
    Window,
    WindowPlace,
    cut_features,
    cut_window,
    window_spans,
    windows,
)
from fsa_seg.profiling.measured import tensor_peak
from fsa_seg.profiling.self_checks import load_golden

from conftest import ROOT


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


def one_window(rows, columns, grid):
    return Window(rows, columns, torch.zeros(grid[0] * grid[1], 1), grid)


def test_centres_of_the_golden_windows():
    _, tensors = load_golden(os.path.join(ROOT, 'tests', 'golden', 'image_seed0.safetensors'))
    layout = Layout((112, 160), (112, 160), 96, 32, (16, 16))
    found = [layout.centres(one_window((t, b), (lft, r), (6, 6)), (6, 6)) for t, lft, b, r in tensors['boxes'].tolist()]
    torch.testing.assert_close(torch.cat(found), tensors['lposs.centres'])


@pytest.mark.parametrize(
    'window, rows, columns, multiple, grid, expected',
    [  # 29 rows are padded to 32, by 1 above and 2 below
        (32, (10, 39), (4, 36), (16, 16), (2, 4), ([17, 33], [8, 16, 24, 32])),
        # of a whole image nothing is padded, and cells are stretched
        (0, (0, 40), (0, 37), (16, 16), (2, 2), ([10, 30], [9.25, 27.75])),
    ],
)
def test_centres_by_hand(window, rows, columns, multiple, grid, expected):
    layout = Layout((64, 64), (64, 64), window, 16, multiple)
    found = layout.centres(one_window(rows, columns, (1, 1)), grid)
    assert found.tolist() == [[y, x] for y in expected[0] for x in expected[1]]


@pytest.mark.parametrize(
    'window, rows, columns, multiple, grid, cell',
    [
        (32, (0, 32), (0, 32), (16, 16), (2, 2), (16, 16)),
        (32, (0, 32), (0, 32), (16, 16), (4, 8), (8, 4)),
        (42, (0, 42), (0, 42), (16, 16), (6, 4), (8, 16)),  # padded to 48
        (48, (0, 48), (0, 48), (16, 16), (2, 4), (16, 16)),  # coarser than CLIP's, and no whole fraction
        (0, (0, 53), (0, 70), (16, 16), (3, 8), (16, 8)),
    ],
)
def test_a_cell_is_clips_patch_or_a_fraction(window, rows, columns, multiple, grid, cell):
    layout = Layout((64, 70), (64, 70), window, 16, multiple, patch=(16, 16))
    assert layout.cell(one_window(rows, columns, grid)) == cell


@pytest.mark.parametrize('most', [1, 40, 10**6])
@pytest.mark.parametrize('size', [(5, 7), (11, 7), (11, 20), (3, 4), (1, 1)])
def test_a_map_of_pixels_is_resized_as_torch_does(size, most):
    torch.manual_seed(0)
    cosines, joined = torch.randn(2, 5, 7), torch.zeros(2, *size)
    for place, tile in PixelMap(cosines, size).tiles(most):
        joined[(slice(None), *place)] = tile
    expected = F.interpolate(cosines[None], size, mode='bilinear')[0]
    torch.testing.assert_close(joined, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('size', [(9, 15), (20, 33)])
def test_padding_at_the_right_and_below_is_left_out(size):
    """An image of 9 × 15 pixels, padded to 12 × 16: its result is that of the content alone."""
    torch.manual_seed(0)
    image = torch.rand(3, 12, 16)
    whole = slide(image, mean_color, window=8, stride=4)
    layout = Layout((12, 16), size, 8, 4, content=(9, 15))
    overlap = OverlapAdd(layout)
    for rows, columns in windows(12, 16, 8, 4):
        cosines, grid = mean_color(cut_window(image, rows, columns))
        overlap.add(Window(rows, columns, cosines[0], grid))
    expected = F.interpolate(whole[None, :, :9, :15], size, mode='bilinear')[0]
    torch.testing.assert_close(overlap.strip()(), expected, atol=1e-6, rtol=1e-6)


def cut_one_by_one(features, image_pads, side, start, length, cells, axis):
    """Read features along one axis at the centres of cells, in float64, one by one."""
    count, total = features.shape[axis], side + sum(image_pads)
    read = []
    for i in range(cells):
        place = start + (i + 0.5) * length / cells + image_pads[0]
        place = min(max(place * count / total - 0.5, 0), count - 1)
        shares = [max(0, 1 - abs(place - j)) for j in range(count)]
        read.append(sum(share * features.select(axis, j) for j, share in enumerate(shares)))
    return torch.stack(read, axis)


@pytest.mark.parametrize(
    'rows, columns, padded, grid, before',
    [
        ((0, 16), (8, 24), (16, 16), (2, 2), (0, 0)),  # cells of the image's own size
        ((5, 18), (9, 27), (16, 24), (4, 3), (1, 3)),  # padded by 1 and 2, and by 3 and 3
        ((13, 29), (13, 29), (16, 16), (2, 2), (0, 0)),  # the last cells
        ((0, 29), (0, 29), (24, 24), (3, 3), (0, 0)),  # a whole image, cut at the right and below
        ((0, 12), (0, 29), (16, 24), (2, 3), (2, 0)),  # one whose height is padded
    ],
)
def test_features_are_cut_at_the_centres_of_cells(rows, columns, padded, grid, before):
    """Of an image of 29 × 29 pixels, padded to 32 × 32: by 1 above and at the left, by 2 below and at the right."""
    torch.manual_seed(0)
    features = torch.randn(1, 3, 4, 4)
    found = cut_features(features, (29, 29), (8, 8), WindowPlace(rows, columns), padded, grid)
    expected = features.double()
    for axis, span in enumerate((rows, columns)):
        start = span[0] - before[axis]
        expected = cut_one_by_one(expected, (1, 2), 29, start, padded[axis], grid[axis], 2 + axis)
    torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-6)


def test_features_of_equal_cells_are_copied():
    torch.manual_seed(0)
    features = torch.randn(1, 3, 4, 5)
    found = cut_features(features, (32, 40), (8, 8), WindowPlace((8, 24), (16, 40)), (16, 24), (2, 3))
    assert torch.equal(found, features[:, :, 1:3, 2:5])
