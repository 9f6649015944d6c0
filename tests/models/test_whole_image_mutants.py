"""What whole images show, and what LPOSS and Trident make of their windows, under stand-ins for models."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from fsa_seg.methods import make_method
from fsa_seg.models.segmentor import TrainingFreeSegmentor, stretched_size
from fsa_seg.models.whole_image import WholeImages
from fsa_seg.ops.affinity import LastAttention, affinity_product, pack_attention
from fsa_seg.ops.attention import proxy_map, proxy_mean
from fsa_seg.ops.label_propagation import patch_graph, propagate_pixels, rgb_to_lab
from fsa_seg.ops.windows import Layout, Window, WindowPlace, splice, windows

SHAPE, SIZE = (48, 80), (30, 70)  # of the resized image and of the result
BOXES = windows(*SHAPE, 48, 16)  # three windows, side by side


def pixels_of(merged):
    joined = torch.zeros(5, *merged.size)
    for place, tile in merged.tiles(1000):
        joined[(slice(None), *place)] = tile
    return joined


def mean_of_windows(maps):
    """Return windows' maps (h, w, D), resized to their pixels and averaged: (D, height, width) of the image."""
    total, count = torch.zeros(maps[0].shape[2], *SHAPE), torch.zeros(SHAPE)
    for ((top, bottom), (left, right)), cells in zip(BOXES, maps):
        resized = F.interpolate(cells.permute(2, 0, 1)[None], (bottom - top, right - left), mode='bilinear')
        total[:, top:bottom, left:right] += resized[0]
        count[top:bottom, left:right] += 1
    return total / count


def resized(values, size):
    return F.interpolate(values[None], size, mode='bilinear')[0]


@pytest.mark.parametrize('content', [None, (41, 67)])
@pytest.mark.parametrize('pixels', [False, True])
def test_lposs_step_by_step(pixels, content):
    """Cosines of CLIP's 3 × 3 patches go to the VFM's 6 × 6 cells, and all windows' cells form one graph."""
    torch.manual_seed(0)
    cosines, features = torch.randn(3, 3, 3, 5), torch.randn(3, 8, 6, 6)
    rgb = torch.rand(3, *(content or SHAPE)) / 20 + 0.5
    method = make_method(dict(type='lposs', pixels=pixels, neighbours=20))
    layout = Layout(SHAPE, SIZE, 48, 16, (16, 16), None, content, SimpleNamespace(rgb=lambda: rgb, once=once), (16, 16))
    seen = [Window(*box, z.flatten(0, 1), (3, 3), kept) for box, z, kept in zip(BOXES, cosines, features)]
    found = method.merge(seen, layout)

    centres = torch.tensor(
        [[8 * y + 4, left + 8 * x + 4] for _, (left, _) in BOXES for y in range(6) for x in range(6)]
    )
    scores = F.interpolate(cosines.permute(0, 3, 1, 2), (6, 6), mode='bilinear').permute(0, 2, 3, 1).flatten(0, 2)
    graph = patch_graph(features.permute(0, 2, 3, 1).flatten(0, 2), centres, 20)
    expected = mean_of_windows(graph.propagate(scores).view(3, 6, 6, 5))
    expected = expected[:, : rgb.shape[1], : rgb.shape[2]]
    if pixels:
        expected = propagate_pixels(expected.contiguous(), rgb_to_lab(rgb))
    assert found.size == SIZE
    torch.testing.assert_close(pixels_of(found), resized(expected, SIZE), atol=1e-4, rtol=1e-4)


def once(role, key, make):
    return make()


class ImageOfSAM:
    """An image whose attention is made of the colours of blocks of 8 × 8 pixels."""

    def __init__(self, original, side):
        torch.manual_seed(1)
        self._original, self._side, self.parts = original, side, torch.randn(3, 3, 2 * 4)

    def original(self):
        return self._original

    def input_side(self, role):
        return self._side

    def multiple(self, role):
        return 8, 8

    def padding(self, role):
        return torch.tensor([0.4, 0.5, 0.6])

    def once(self, role, key, make):
        return make()

    def run(self, role, pixels, kind=None):
        cells = F.avg_pool2d(pixels, 8).permute(0, 2, 3, 1) - 0.5
        parts = [(4 * cells @ part).unflatten(3, (2, 4)) for part in self.parts]
        positions = [cells.new_zeros(*cells.shape[:3], 2, side) for side in cells.shape[1:3]]
        return pack_attention(LastAttention(*parts, *positions))


@pytest.mark.parametrize('content', [None, (41, 67)])
@pytest.mark.parametrize('side, halves', [(64, False), (64, True), (None, False), (None, True)])
def test_trident_step_by_step(side, halves, content):
    """Windows of 6 × 6 cells, half CLIP's patch; the original has 60 × 97 pixels, and SAM sees a square."""
    torch.manual_seed(0)
    tokens, text, original = torch.randn(3, 6, 6, 7), torch.randn(7, 5), torch.rand(3, 60, 97)
    image = ImageOfSAM(original, side)
    method = make_method(dict(type='trident', alpha=0.5, halves=halves))
    layout = Layout(SHAPE, SIZE, 48, 16, (16, 16), None, content, image, (16, 16), lambda x: x.sin() @ text)
    seen = [Window(*box, torch.zeros(36, 5), (6, 6), None, x.flatten(0, 1)) for box, x in zip(BOXES, tokens)]
    found = method.merge(seen, layout)

    spliced, count = torch.zeros(6, 10, 7), torch.zeros(6, 10, 1)
    for i, x in enumerate(tokens):
        spliced[:, 2 * i : 2 * i + 6] += x
        count[:, 2 * i : 2 * i + 6] += 1
    spliced = (spliced / count).permute(2, 0, 1)
    if content:  # 41 × 67 pixels have 5 × 8 cells, whose centres lie between those of the windows
        windows_of = [(*box, x.flatten(0, 1), (6, 6)) for box, x in zip(BOXES, tokens)]
        spliced = splice(windows_of, content, (8, 8), (16, 16))[0].T.unflatten(1, (5, 8))
    parts = [(spliced, original)]
    if halves:
        middle = spliced.shape[2] // 2
        parts = [(spliced[:, :, :middle], original[:, :, :49]), (spliced[:, :, middle:], original[:, :, 49:])]
    mixed = []
    for cells, pixels in parts:
        if side:
            height, width = (-(-length // 16) * 16 for length in pixels.shape[1:])
            longer = max(height, width)
            shown = int(height * side / longer + 0.5), int(width * side / longer + 0.5)
            square = image.padding('affinity')[:, None, None].repeat(1, side, side)
            square[:, : shown[0], : shown[1]] = F.interpolate(
                resized(pixels, (height, width))[None], shown, mode='bilinear', antialias=True
            )[0]
            valid = shown[0] // 8, shown[1] // 8
        else:
            scale = max(content or SHAPE) / max(pixels.shape[1:])
            valid = tuple(round(length * scale / 8) for length in pixels.shape[1:])
            square = resized(pixels, (8 * valid[0], 8 * valid[1]))
        values = resized(cells, valid).flatten(1).T
        product = affinity_product(image.run('affinity', square[None]), valid, values, 0.5)
        mixed.append(product.T.unflatten(1, valid))
    if halves:
        mixed[1] = resized(mixed[1], mixed[0].shape[1:])
    expected = (torch.cat(mixed, 2).permute(1, 2, 0).sin() @ text).permute(2, 0, 1)
    assert found.size == SIZE
    torch.testing.assert_close(pixels_of(found), resized(expected, SIZE), atol=1e-4, rtol=1e-4)


def test_trident_has_one_mean_for_all_windows():
    torch.manual_seed(0)
    method, features, values = make_method('trident'), torch.randn(2, 4, 3, 3) + 0.5, torch.randn(2, 9, 6)
    mean = method.whole(SimpleNamespace(window_features=lambda role: list(features.split(1))))
    torch.testing.assert_close(mean, proxy_mean([features]))
    for whole, expected in (([mean, mean / 2], torch.stack([mean, mean / 2])), ([], None)):
        block = SimpleNamespace(features=dict(proxy=features), whole=whole)
        found = method.attention(block).apply(values)
        torch.testing.assert_close(found, proxy_map(features, mean=expected).apply(values))


class Blocks:
    """A VFM whose features are the mean colours of blocks of 8 × 8 pixels."""

    multiple = (8, 8)

    def grid(self, height, width):
        return height // 8, width // 8


def seen_image(image, window=32, stride=24, scope='image', content=None, size=None, labels=None):
    runs = []

    def run(role, pixels, kind=None):
        runs.append(tuple(pixels.shape))
        return F.avg_pool2d(pixels, 8)

    segmentor = SimpleNamespace(
        window=window,
        stride=stride,
        multiple=(16, 16),
        vfms=dict(role=Blocks()),
        method=SimpleNamespace(roles=dict(role='windows')),
        regions=SimpleNamespace(digest='', role=None, maps=lambda image: labels),
        role_key=lambda role: (role,),
        sees_image=lambda role: scope == 'image',
        to_rgb=lambda images: images,
        run=run,
    )
    images = WholeImages([image], size and [size], None, content and [content])
    images.most = 2
    return images.of(segmentor, 0), runs


@pytest.mark.parametrize('scope', ['image', 'window'])
def test_features_of_windows(scope):
    """Where cells are those of the image, features that are cut are features of the windows; the image runs once."""
    torch.manual_seed(0)
    image = torch.rand(3, 56, 80)
    seen, runs = seen_image(image, scope=scope)
    found = seen.window_features('role')
    boxes = windows(56, 80, 32, 24)
    for features, (rows, columns) in zip(found, boxes, strict=True):
        torch.testing.assert_close(features, F.avg_pool2d(image[None, :, slice(*rows), slice(*columns)], 8))
        assert torch.equal(seen.window('role', WindowPlace(rows, columns)), features)
    assert runs == ([(1, 3, 56, 80)] if scope == 'image' else [(2, 3, 32, 32)] * 3)


def test_an_image_and_its_windows_are_padded_before_features_are_cut():
    """27 × 40 pixels are padded by 2 above and by 3 below; a window of 27 rows by 2 and 3 too."""
    torch.manual_seed(0)
    image = torch.rand(3, 27, 40)
    seen, runs = seen_image(image)
    found = seen.cut('role', WindowPlace((0, 27), (8, 40)))
    torch.testing.assert_close(found, F.avg_pool2d(F.pad(image[None, :, :, 8:], (0, 0, 2, 3)), 8))
    assert runs == [(1, 3, 32, 40)]


@pytest.mark.parametrize(
    'window, place, sides', [(32, ((16, 43), (40, 72)), (32, 32)), (0, ((0, 43), (0, 72)), (32, 64))]
)
def test_regions_of_a_window(window, place, sides):
    """Pixel by pixel; 27 rows are padded by 2 above and by 3 below, and padding has the regions beside it."""
    labels = torch.arange(90 * 100).view(90, 100)
    seen, _ = seen_image(torch.rand(3, 43, 72), window, 16, content=(40, 67), size=(90, 100), labels=labels)
    found = seen.window_regions(WindowPlace(*place))
    (top, _), (left, _) = place
    top -= 2 if window else 0
    assert found.shape == sides
    for y in range(sides[0]):
        for x in range(sides[1]):
            row, column = min(max(y + top, 0), 39), min(max(x + left, 0), 66)
            assert found[y, x] == labels[row * 90 // 40, column * 100 // 67]


def test_pixels_without_padding():
    image = torch.rand(3, 32, 48)
    seen, _ = seen_image(image, content=(30, 41))
    assert torch.equal(seen.rgb(), image[:, :30, :41]) and torch.equal(seen.original(), seen.rgb())


@pytest.mark.parametrize(
    'size, window, expected',
    [
        ((448, 597), 336, (464, 608)),
        ((597, 448), 336, (608, 464)),
        ((448, 592), 336, (448, 592)),  # multiples stay
        ((300, 400), 336, (336, 400)),
        ((320, 448), 336, (320, 448)),  # also below the window
        ((100, 200), 336, (336, 336)),
        ((100, 97), 0, (112, 112)),
        ((97, 97), 0, (112, 112)),
        ((48, 300), 0, (48, 304)),  # 48.64 is cut to 48 before it goes up
    ],
)
def test_sizes_of_stretched_images(size, window, expected):
    assert stretched_size(size, (16, 16), window) == expected


def test_fitted_images():
    torch.manual_seed(0)
    mean, std = torch.tensor([10.0, 20.0, 30.0])[:, None, None], torch.tensor([2.0, 4.0, 5.0])[:, None, None]
    segmentor = SimpleNamespace(
        visual=SimpleNamespace(patch_size=(16, 16)), window=0, data_preprocessor=SimpleNamespace(mean=mean, std=std)
    )
    image = torch.randn(3, 40, 60)
    results = {}
    for segmentor.fit in (None, 'stretch', 'pad'):
        results[segmentor.fit] = TrainingFreeSegmentor.fitted(segmentor, image)
    assert results[None] is image
    torch.testing.assert_close(results['stretch'], resized(image, (48, 64)))
    padded = results['pad']
    assert padded.shape == (3, 48, 64) and torch.equal(padded[:, :40, :60], image)
    assert (padded[:, 40:] * std + mean == 0).all() and (padded[:, :, 60:] * std + mean == 0).all()
