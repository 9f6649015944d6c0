import os

import pytest
import torch
import torch.nn.functional as F

from fsa_seg.models.clip import trunk
from fsa_seg.ops import affinity
from fsa_seg.ops.affinity import LastAttention, affinity_product, pack_attention, pruned_product, unpack_attention
from fsa_seg.ops.attention import proxy_map, proxy_mean, resize_tokens
from fsa_seg.ops.last_block import LastBlock
from fsa_seg.ops.readout import embeddings
from fsa_seg.ops.windows import splice
from fsa_seg.profiling.measured import tensor_peak
from fsa_seg.profiling.self_checks import load_golden

from conftest import ROOT

CASES = dict(kept=(1.2, None), replaced=(3.0, 0.6))  # the golden's names -> α, and what a negative threshold becomes


@pytest.fixture(scope='module')
def golden():
    return load_golden(os.path.join(ROOT, 'tests', 'golden', 'image_seed0.safetensors'))


def scene(heads=3, grid=(7, 9), width=5, columns=11, seed=0):
    """Return a random attention of one image, and values for all of its cells (I, J, columns)."""
    torch.manual_seed(seed)
    parts = [torch.randn(1, *grid, heads, width) for _ in range(3)]
    positions = [torch.randn(1, *grid, heads, side) for side in grid]
    return LastAttention(*parts, *positions), torch.randn(*grid, columns)


def dense_map(attention, valid, alpha, negative=None):
    """Return M (n, n), entry by entry, in float64."""
    query, key, value, rows, columns = (part[0].double() for part in attention)
    places = [(y, x) for y in range(valid[0]) for x in range(valid[1])]
    everywhere = [(y, x) for y in range(key.shape[0]) for x in range(key.shape[1])]
    heads, n = query.shape[2], len(places)
    cosines = torch.zeros(heads, n, n, dtype=torch.float64)
    attended = torch.zeros(heads, n, n, dtype=torch.float64)
    for h in range(heads):
        for i, (y, x) in enumerate(places):
            logits = {
                (v, u): query[y, x, h] @ key[v, u, h] + rows[y, x, h, v] + columns[y, x, h, u] for v, u in everywhere
            }
            whole = sum(logit.exp() for logit in logits.values())
            for j, (v, u) in enumerate(places):
                a, b = value[y, x, h], value[v, u, h]
                cosines[h, i, j] = a @ b / (a @ a * (b @ b)).sqrt()
                attended[h, i, j] = logits[v, u].exp() / whole
    return dense_pruned(attended, cosines, alpha, negative)


def dense_pruned(attended, cosines, alpha, negative=None):
    """Return M (n, n) of attention (H, n, n) and cosines (H, n, n)."""
    heads, n = attended.shape[:2]
    result = torch.zeros(n, n, dtype=attended.dtype)
    for i in range(n):
        threshold = alpha * cosines[:, i].mean()
        if threshold < 0 and negative is not None:
            threshold = negative
        threshold = min(threshold, 0.9)
        for h in range(heads):
            result[i] += attended[h, i] * (cosines[h, i] > threshold) / heads
        result[i] /= result[i].sum()
    return result


@pytest.mark.parametrize('block', [None, 1, 30, 1000])
@pytest.mark.parametrize('name', CASES)
def test_golden_affinity(golden, name, block):
    """Of a map that is given, times values that make the map itself."""
    _, tensors = golden
    attended, value = tensors['trident.attention'], tensors['trident.values']
    found = pruned_product(lambda head, span: attended[head, span], value, torch.eye(117), *CASES[name], block)
    torch.testing.assert_close(found, tensors[f'trident.affinity.{name}'], atol=1e-6, rtol=0)
    cosines = F.cosine_similarity(value[:, :, None], value[:, None], dim=3)
    torch.testing.assert_close(found, dense_pruned(attended, cosines, *CASES[name]), atol=1e-6, rtol=0)


@pytest.mark.parametrize('alpha, negative', [(1.2, None), (3.0, 0.6), (0.0, None), (-4.0, 0.3), (100.0, None)])
@pytest.mark.parametrize('valid', [(7, 9), (4, 9), (7, 3), (5, 2), (1, 1)])
def test_dense_reference(valid, alpha, negative, monkeypatch):
    """The whole grid, or the padding below, at the right, or both; in several blocks with rows left over."""
    attention, values = scene()
    values = values[: valid[0], : valid[1]].flatten(0, 1)
    expected = dense_map(attention, valid, alpha, negative) @ values.double()
    for entries in (1, 4 * 63, 2**20):
        monkeypatch.setattr(affinity, 'BLOCK_ENTRIES', entries)
        found = affinity_product(pack_attention(attention), valid, values, alpha, negative)
        torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=0)


def test_padding_has_a_share_in_a_row_and_none_in_the_product():
    """Another key of the padding changes every row's softmax; M's rows sum to 1 all the same."""
    attention, values = scene()
    valid, values = (4, 9), values[:4].flatten(0, 1)
    ones = affinity_product(pack_attention(attention), valid, torch.ones(36, 1), 1.2)
    torch.testing.assert_close(ones, torch.ones(36, 1))
    before = affinity_product(pack_attention(attention), valid, values, 1.2)
    attention.key[0, 6, :, 0] *= 10.0  # of one head: its share against the others falls
    assert (affinity_product(pack_attention(attention), valid, values, 1.2) - before).abs().max() > 1e-3


def test_a_row_that_loses_all_entries_keeps_its_own_cell():
    """A value of 0 has no cosine above a threshold of 0, nor has its own cell."""
    attention, values = scene()
    attention.value[0, 2, 3] = 0.0
    values = values.flatten(0, 1)
    found = affinity_product(pack_attention(attention), (7, 9), values, 0.0)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[2 * 9 + 3], values[2 * 9 + 3])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    """Of the same rounded numbers the result is the same; the number of heads is read from a half-precision channel."""
    attention, values = scene(heads=16, width=3)
    packed, values = pack_attention(attention).to(dtype), values.flatten(0, 1).to(dtype)
    found = affinity_product(packed, (7, 9), values, 1.2)
    assert found.dtype == torch.float32
    assert torch.equal(found, affinity_product(packed.float(), (7, 9), values.float(), 1.2))


def test_packing_keeps_the_parts():
    attention, _ = scene(heads=4, grid=(3, 6), width=2)
    packed = pack_attention(attention)
    assert packed.shape == (1, 1 + 4 * (3 * 2 + 3 + 6), 3, 6)
    assert all(torch.equal(*parts) for parts in zip(unpack_attention(packed), attention))


def test_memory_is_a_few_blocks_and_the_heads_parts(monkeypatch):
    """Beside queries, keys and values there is no n × n matrix, neither for all heads nor for one."""
    attention, values = scene(heads=2, grid=(40, 40), width=4, columns=8)
    packed, values = pack_attention(attention), values.flatten(0, 1)
    monkeypatch.setattr(affinity, 'BLOCK_ENTRIES', 2**14)
    peak = tensor_peak(lambda: affinity_product(packed, (40, 40), values, 1.2), 'cpu')
    assert peak < 4 * (packed.numel() * 1.5 + 6 * 2**14 + 4 * values.numel()) < 0.25 * 4 * 1600**2


# splice


def test_splice_by_hand():
    """Two windows of 2 cells, 1 apart: the cell that both hold is the mean."""
    windows = [((0, 4), (0, 8), torch.tensor([[1.0], [2.0]]), (1, 2))]
    windows.append(((0, 4), (4, 12), torch.tensor([[4.0], [8.0]]), (1, 2)))
    tokens, grid = splice(windows, (4, 12), (4, 4))
    assert grid == (1, 3) and torch.equal(tokens, torch.tensor([[1.0], [3.0], [8.0]]))


def test_a_centre_on_the_edge_of_two_windows_is_the_second_ones():
    windows = [((0, 4), (0, 6), torch.tensor([[1.0]]), (1, 1)), ((0, 4), (6, 12), torch.tensor([[5.0]]), (1, 1))]
    assert splice(windows, (4, 12), (4, 4))[0].tolist() == [[1], [5], [5]]


def test_cells_that_fit_are_copied(golden):
    """The golden's windows: every cell is the mean of the windows' cells at the same place, bit by bit."""
    _, tensors = golden
    torch.manual_seed(0)
    boxes, size = tensors['boxes'].tolist(), 96 // 16
    maps = [torch.randn(size, size, 5) for _ in boxes]
    windows = [((t, b), (lft, r), x.flatten(0, 1), (size, size)) for (t, lft, b, r), x in zip(boxes, maps)]
    found, grid = splice(windows, (112, 160), (16, 16))
    assert grid == (7, 10)
    for y in range(7):
        for x in range(10):
            cells = [
                m[y - t // 16, x - lft // 16]
                for (t, lft, b, r), m in zip(boxes, maps)
                if t <= 16 * y < b and lft <= 16 * x < r
            ]
            total = cells[0].clone()
            for cell in cells[1:]:
                total += cell
            assert torch.equal(found[10 * y + x], total / len(cells))


def direct_splice(windows, shape, count, pads):
    """Return the splice (h, w, D) cell by cell, in float64; `pads` are pixels before and after, of rows and columns."""
    h, w = count
    result = torch.zeros(h, w, windows[0][2].shape[1], dtype=torch.float64)
    for y in range(h):
        for x in range(w):
            centre, found = ((y + 0.5) * shape[0] / h, (x + 0.5) * shape[1] / w), []
            for *spans, tokens, grid in windows:
                if not all(start <= place < end for place, (start, end) in zip(centre, spans)):
                    continue
                cells, value = tokens.double().unflatten(0, grid), 0
                places = [
                    min(max((place - start + before) / (end - start + before + after) * side - 0.5, 0), side - 1)
                    for place, (start, end), (before, after), side in zip(centre, spans, pads, grid)
                ]
                for v in range(grid[0]):
                    for u in range(grid[1]):
                        share = max(0, 1 - abs(places[0] - v)) * max(0, 1 - abs(places[1] - u))
                        value = value + share * cells[v, u]
                found.append(value)
            result[y, x] = sum(found) / len(found)
    return result.flatten(0, 1)


@pytest.mark.parametrize(
    'shape, spans, grid, cell, count, multiple, pads',
    [  # windows shifted by a fraction of a cell; sides no multiple of the cell
        ((40, 52), ([(0, 32), (8, 40)], [(0, 32), (20, 52)]), (4, 4), (8, 8), (5, 6), (1, 1), ((0, 0), (0, 0))),
        # a grid that is no multiple of the cells
        ((32, 40), ([(0, 32)], [(0, 32), (8, 40)]), (3, 5), (8, 8), (4, 5), (1, 1), ((0, 0), (0, 0))),
        # windows of 30 pixels, padded to 32, with cells of 8
        ((30, 44), ([(0, 30)], [(0, 30), (14, 44)]), (4, 4), (8, 8), (4, 6), (8, 8), ((1, 1), (1, 1))),
        # padding of an odd number of pixels, and cells of half the size of CLIP's
        ((37, 37), ([(0, 29), (8, 37)], [(0, 29), (8, 37)]), (8, 8), (4, 4), (9, 9), (8, 16), ((1, 2), (1, 2))),
    ],
)
def test_other_windows_are_resampled(shape, spans, grid, cell, count, multiple, pads):
    torch.manual_seed(0)
    windows = [(rows, columns, torch.randn(grid[0] * grid[1], 3), grid) for rows in spans[0] for columns in spans[1]]
    found, found_count = splice(windows, shape, cell, multiple)
    assert found_count == count
    torch.testing.assert_close(found, direct_splice(windows, shape, count, pads).float(), atol=1e-5, rtol=1e-5)


def test_a_coarser_map_is_resized_as_published():
    """21×21 cells on windows of 24×24 patches are resized bilinearly first."""
    torch.manual_seed(0)
    tokens = torch.randn(2, 21 * 21, 4)
    spans = [(0, 336), (224, 560)]
    found, grid = splice([((0, 336), span, x, (21, 21)) for span, x in zip(spans, tokens)], (336, 560), (14, 14))
    resized = F.interpolate(tokens.transpose(1, 2).unflatten(2, (21, 21)), (24, 24), mode='bilinear')
    expected = torch.zeros(4, 24, 40)
    expected[:, :, :24] += resized[0]
    expected[:, :, 16:] += resized[1]
    expected[:, :, 16:24] /= 2
    assert grid == (24, 40)
    torch.testing.assert_close(found, expected.flatten(1).T, atol=1e-5, rtol=1e-5)


def test_a_whole_image_as_one_window():
    """Patches that do not fit are left out: the grid lies over the whole image, and a small image is padded."""
    torch.manual_seed(0)
    tokens = torch.randn(12, 4)
    found, grid = splice([((0, 53), (0, 70), tokens, (3, 4))], (53, 70), (16, 16), (16, 16), whole_image=True)
    assert grid == (3, 4)
    torch.testing.assert_close(found, tokens)
    found, grid = splice([((0, 12), (0, 20), tokens[:2], (1, 2))], (12, 20), (8, 8), (16, 8), whole_image=True)
    expected = direct_splice([((0, 12), (0, 20), tokens[:2], (1, 2))], (12, 20), (2, 2), ((2, 2), (0, 0)))
    torch.testing.assert_close(found, expected.float())


def test_half_precision_is_summed_in_float32():
    tokens = torch.full((1, 1), 2049.0).half()  # 2048 in half precision
    found, _ = splice([((0, 8), (0, 8), tokens, (1, 1))] * 3, (8, 8), (8, 8))
    assert found.dtype == torch.float32 and found.item() == tokens.item()


# the whole of Trident


def test_mean_of_the_similarities_of_several_windows():
    torch.manual_seed(0)
    features = [torch.randn(2, 5, 3, 4) + 0.2, torch.randn(1, 5, 2, 2)]
    entries = []
    for part in features:
        for image in F.normalize(part.flatten(2), dim=1):
            entries.append((image.T @ image).flatten())
    torch.testing.assert_close(proxy_mean(features), torch.cat(entries).mean())


@pytest.mark.parametrize('mean', [0.3, torch.tensor(0.3), torch.tensor([0.1, 0.4])])
@pytest.mark.parametrize('block', [None, 5])
def test_proxy_map_with_a_mean(mean, block):
    """A number for all images, or a number for each; in place of each image's own."""
    torch.manual_seed(0)
    features, values = torch.randn(2, 5, 3, 4), torch.randn(2, 12, 6)
    unit = F.normalize(features.flatten(2), dim=1)
    each = torch.as_tensor(mean).expand(2)
    logits = (unit.transpose(1, 2) @ unit - 1.2 * each[:, None, None]) * 3
    expected = logits.masked_fill(logits < 0, float('-inf')).softmax(2) @ values
    torch.testing.assert_close(proxy_map(features, block=block, mean=mean).apply(values), expected)
    assert (proxy_map(features).apply(values) - expected).abs().max() > 1e-3


@pytest.mark.parametrize('name', CASES)
def test_golden_logits(golden, name):
    """Six windows under ProxyCLIP's map with one mean, spliced, mixed by the affinity, read out."""
    visual, tensors = golden
    alpha, negative = CASES[name]
    image, features, windows = tensors['image'], tensors['vfm_features'], []
    mean = proxy_mean(list(features.split(2)))  # in whatever batches
    for (top, left, bottom, right), window_features in zip(tensors['boxes'].tolist(), features[:, None]):
        pixels = image[None, :, top:bottom, left:right]
        block = LastBlock(visual, *trunk(visual, pixels))
        attention = proxy_map(window_features, mean=mean)
        values = resize_tokens(block.v[:, 1:], (6, 6), (12, 12))
        windows.append(((top, bottom), (left, right), block.out(attention.apply(values))[0], (12, 12)))
    tokens, grid = splice(windows, (112, 160), (8, 8))
    assert grid == (14, 20)
    values = resize_tokens(tokens[None], grid, (9, 13))[0]
    attended = tensors['trident.attention']
    mixed = pruned_product(
        lambda head, span: attended[head, span], tensors['trident.values'], values, alpha, negative, 50
    )
    logits = embeddings(visual, mixed[None])[0] @ tensors['text'].T
    torch.testing.assert_close(logits, tensors[f'trident.logits.{name}'], atol=1e-5, rtol=0)
