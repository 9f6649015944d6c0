"""CorrCLIP's and GramSeg's region operations against golden numbers and cell-by-cell evaluations."""

import math
import os
import time

import pytest
import torch
import torch.nn.functional as F

from fsa_seg.models.clip import trunk_and_inner
from fsa_seg.ops.attention import AttentionMap, resize_tokens, weighted_sum
from fsa_seg.ops.feedback import FSA, adapt, prune, threshold, within
from fsa_seg.ops.probes import region_probes
from fsa_seg.ops.regions import correct_labels, feature_regions, merge_regions, nearest, region_indices, scope_map
from fsa_seg.profiling.self_checks import load_golden

from conftest import ROOT


@pytest.fixture(scope='module')
def golden():
    visual, tensors = load_golden(os.path.join(ROOT, 'tests', 'golden', 'image_seed0.safetensors'))
    crops = [tensors['image'][:, top:bottom, left:right] for top, left, bottom, right in tensors['boxes'].tolist()]
    return visual, torch.stack(crops), tensors


def blobs(windows=2, channels=6, grid=(5, 7), regions=9, seed=0, spread=1.0):
    """Return features and region maps (windows, *grid); cells of one region are alike, labels are not consecutive."""
    torch.manual_seed(seed)
    index = torch.randint(0, regions, (windows, *grid))
    centres = torch.randn(windows, regions, channels) + 1.5
    features = torch.stack([centre[of] for centre, of in zip(centres, index)]) + 0.3 * spread * torch.randn(
        windows, *grid, channels
    )
    labels = torch.randperm(50)[:regions].sort().values + 2
    return features.permute(0, 3, 1, 2).contiguous(), labels[index].int()


def merged_by_hand(features, labels, eps):
    """Return one window's merged labels, by a walk along the chains."""
    unit = features / features.norm(dim=1, keepdim=True)
    values = sorted(set(labels.tolist()))
    if len(values) < 3:
        return labels
    means = {}
    for value in values[1:]:
        mean = torch.stack([unit[i] for i in range(len(labels)) if labels[i] == value]).mean(0)
        means[value] = mean / mean.norm()
    pairs = {(a, b): float(means[a] @ means[b]) for a in means for b in means}
    most, names = max(pairs.values()), {}
    for value in means:
        if value in names:
            continue
        name, waiting = 10000 + len(set(names.values())), [value]
        while waiting:
            at = waiting.pop()
            names[at] = name
            waiting += [other for other in means if other not in names and most - pairs[at, other] <= eps]
    return torch.tensor([names.get(label, label) for label in labels.tolist()])


def scope_by_hand(features, labels):
    """Return one window's similarities and allowed pairs, cell by cell."""
    unit = features / features.norm(dim=1, keepdim=True)
    s, count = unit @ unit.T, len(unit)
    mean, smallest = s.sum() / count**2, min(labels.tolist())
    allowed = torch.zeros(count, count, dtype=torch.bool)
    for i in range(count):
        for j in range(count):
            if smallest in (int(labels[i]), int(labels[j])):
                allowed[i, j] = s[i, j] > mean or i == j
            else:
                allowed[i, j] = labels[i] == labels[j]
    return s, allowed


def matrix(attention, count):
    return attention.apply(torch.eye(count).expand(len(attention.scope(slice(None))), -1, -1))


def flat(features):
    return features.flatten(2).transpose(1, 2)


def test_golden_merging(golden):
    _, _, t = golden
    merged = merge_regions(t['vfm_features'], t['corrclip.regions'])
    assert torch.equal(merged, t['corrclip.merged']) and merged.dtype == t['corrclip.regions'].dtype


@pytest.mark.parametrize('eps', [0.0, 0.02, 0.05, 0.2])
@pytest.mark.parametrize('seed', range(6))
def test_merging_equals_a_walk_along_chains(seed, eps):
    features, regions = blobs(seed=seed, regions=12, spread=0.5)
    merged = merge_regions(features, regions, eps)
    for window, labels, expected in zip(flat(features), regions.flatten(1), merged):
        assert torch.equal(expected.long(), merged_by_hand(window, labels, eps).long())


def test_merging_goes_along_a_chain():
    """Directions at 0, 30, 60 and 150 degrees: neighbours differ by 1 − cos 30° = 0.134, and 0 and 60 by 0.5."""
    angles = torch.tensor([200.0, 0.0, 150.0, 30.0, 60.0]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()])[None, :, None]
    regions = torch.tensor([[[3, 4, 5, 6, 7]]])
    assert merge_regions(features, regions).tolist() == [[3, 10000, 10001, 10000, 10000]]
    assert merge_regions(features, regions, 0.1).tolist() == [[3, 10000, 10001, 10002, 10003]]


def test_regions_that_are_0_2_apart_are_merged():
    """By default; the first two regions differ by 0.195, and the second and the third by 0.205."""
    angles = torch.tensor([1.0, 0.805, 0.795]).acos().cumsum(0)
    features = torch.stack([angles.cos(), angles.sin()])[None, :, None]
    found = merge_regions(F.pad(features, (1, 0), value=1.0), torch.tensor([[[3, 4, 5, 6]]]))
    assert found.tolist() == [[3, 10000, 10000, 10001]]


def test_windows_of_one_or_two_labels_stay_as_they_are():
    features, _ = blobs(windows=3, grid=(2, 2))
    regions = torch.tensor([[[5, 5], [5, 5]], [[1, 7], [7, 7]], [[1, 7], [8, 7]]])
    merged = merge_regions(features, regions, eps=2.0)
    assert torch.equal(merged[:2], regions[:2].flatten(1)) and merged[2].tolist() == [1, 10000, 10000, 10000]


def test_a_large_smallest_label_never_meets_a_merged_one():
    features, _ = blobs(windows=1, grid=(2, 2))
    regions = torch.tensor([[[10000, 10001], [10002, 10003]]])
    assert merge_regions(features, regions, eps=2.0).tolist() == [[10000, 10001, 10001, 10001]]


def test_batch_of_windows_equals_single_windows():
    """Windows of 2 to 9 regions."""
    features, regions = blobs(windows=4)
    regions[1] = regions[1].clamp(max=int(regions[1].min()) + 1)
    together = merge_regions(features, regions, 0.05)
    single = [merge_regions(features[i : i + 1], regions[i : i + 1], 0.05)[0] for i in range(4)]
    assert torch.equal(together, torch.stack(single))


def test_region_indices_by_hand():
    index, counts = region_indices(torch.tensor([[7, -1, 7, 300], [2, 2, 2, 2]]))
    assert index.tolist() == [[1, 0, 1, 2], [0, 0, 0, 0]] and counts.tolist() == [3, 1]


@pytest.mark.parametrize('sides', [((12, 12), (6, 6)), ((5, 7), (3, 4)), ((3, 2), (7, 9)), ((336, 224), (42, 28))])
def test_nearest_is_torchs(sides):
    before, after = sides
    regions = torch.randint(0, 1000, (2, *before))
    expected = F.interpolate(regions[:, None].float(), after, mode='nearest')[:, 0].long()
    assert torch.equal(nearest(regions, after), expected)


@pytest.mark.parametrize('block', [None, 1, 4, 35, 100])
@pytest.mark.parametrize('regions', [1, 2, 9])
def test_scope_map_equals_cells_by_hand(regions, block):
    features, labels = blobs(regions=regions, spread=2.0)
    attention = scope_map(features, labels, block=block)
    assert (attention.grid, attention.shared, attention.covers_cls, attention.row_sum) == ((5, 7), True, False, 1.0)
    rows = matrix(attention, 35)
    for window, cells, row, mask in zip(flat(features), labels.flatten(1), rows, attention.scope(slice(None))):
        s, allowed = scope_by_hand(window, cells)
        assert torch.equal(mask, allowed)
        expected = (4 * s).exp() * allowed
        torch.testing.assert_close(row, expected / expected.sum(1, keepdim=True), atol=1e-6, rtol=1e-5)
    part = slice(3, 8)
    assert torch.equal(attention.scope(part), attention.scope(slice(None))[:, part])
    assert torch.equal(scope_map(features, labels, block=block).scope(part), attention.scope(part))


@pytest.mark.parametrize('block', [None, 4])
def test_with_logits_stays_inside_the_scope(block):
    features, labels = blobs(spread=2.0)
    attention, bias = scope_map(features, labels, block=block), torch.randn(2, 35, 35)
    adapted = attention.with_logits(0.7, bias.clone())
    for i, (window, cells) in enumerate(zip(flat(features), labels.flatten(1))):
        s, allowed = scope_by_hand(window, cells)
        expected = (0.7 * 4 * s + bias[i]).masked_fill(~allowed, -math.inf).softmax(1)
        torch.testing.assert_close(matrix(adapted, 35)[i], expected, atol=1e-6, rtol=1e-5)
    assert adapted.scope is not None


def test_features_that_are_all_alike():
    """No similarity is above the mean: every row keeps its own cell."""
    features = torch.ones(1, 3, 2, 2)
    attention = scope_map(features, torch.tensor([[[0, 0], [1, 1]]]))
    rows = matrix(attention, 4)
    assert rows.isfinite().all() and rows.diagonal(0, 1, 2).gt(0).all()
    assert scope_map(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2).int()).apply(torch.ones(1, 4, 1)).eq(1).all()


def test_a_sum_of_maps_has_no_scope():
    features, labels = blobs()
    attention = scope_map(features, labels)
    assert weighted_sum([(0.5, attention), (0.5, attention)]).scope is None


def dense_adapted(z, uniform, a, allowed, p, lam=3.0):
    """Return Â of one window: FSA's steps row by row, over the allowed cells alone."""
    probs = (20 * z - 35 * uniform).softmax(1)
    logs = (probs + 1e-10).log()
    w = torch.zeros_like(a)
    for i in range(len(z)):
        cells = [j for j in range(len(z)) if allowed[i, j]]
        s = torch.tensor([1 / (1 + max(0.0, float((probs[i] * (logs[i] - logs[j])).sum()))) for j in cells])
        share = s.softmax(0)
        total, kept = 0.0, []
        for j in s.argsort(descending=True).tolist():
            total += float(share[j])
            if kept and total > p < 1:
                break
            kept.append(j)
        least = min(float(s[j]) for j in kept)
        kept = [j for j in range(len(cells)) if float(s[j]) >= least]
        row = torch.stack([s[j] * (lam * s[j]).exp() for j in kept]).softmax(0)
        for j, value in zip(kept, row):
            w[i, cells[j]] = value
    return (w @ a + a @ w + w) / 3


@pytest.mark.parametrize('block', [None, 1, 4, 100])
@pytest.mark.parametrize('p', [0.23, 0.47, 0.9, 1.0])
def test_fsa_stays_inside_the_scope(p, block):
    features, labels = blobs(spread=2.0)
    z, uniform = 0.1 * torch.rand(2, 35, 4), 0.1 * torch.rand(2, 1, 4)
    attention = scope_map(features, labels)
    adapted = matrix(FSA(p=p, block=block).adapted_map(attention, z, uniform), 35)
    free = matrix(
        FSA(p=p, block=block).adapted_map(attention._replace(scope=None), z, uniform)._replace(scope=attention.scope),
        35,
    )
    for i in range(2):
        allowed = attention.scope(slice(None))[i]
        expected = dense_adapted(z[i], uniform[i], matrix(attention, 35)[i], allowed, p)
        torch.testing.assert_close(adapted[i], expected, atol=1e-5, rtol=1e-4)
        outside = ~(allowed.float() @ allowed.float() > 0)
        assert outside.any() and adapted[i][outside].eq(0).all() and free[i][outside].gt(0).any()


@pytest.mark.parametrize('p', [0.1, 0.45, 0.9999999, 1.0])
def test_pruning_never_keeps_what_is_outside(p):
    torch.manual_seed(0)
    s = torch.rand(1, 9, 9)
    inside = torch.rand(1, 9, 9) > 0.6
    inside.diagonal(0, 1, 2).fill_(True)
    masked = within(s.clone(), AttentionMap(lambda x: x, 1.0, False, scope=lambda rows: inside[:, rows]), slice(None))
    w = adapt(masked, 3.0, p)
    assert w.isfinite().all() and w[~inside].eq(0).all()
    torch.testing.assert_close(w.sum(2), torch.ones(1, 9))
    assert prune(masked, p)[~inside].eq(-math.inf).all() and threshold(masked, p).isfinite().all()
    for i in range(9):  # as if the other cells were not there
        own = s[:, i, inside[0, i]][:, None]
        torch.testing.assert_close(adapt(own, 3.0, p)[0, 0], w[0, i, inside[0, i]])


def test_a_scope_of_all_changes_no_number():
    features, _ = blobs()
    z, uniform, values = torch.rand(2, 35, 4), torch.rand(2, 1, 4), torch.randn(2, 35, 3)
    attention = scope_map(features, torch.ones(2, 35).int())
    everywhere = attention._replace(scope=lambda rows: torch.ones(2, 35, 35, dtype=torch.bool)[:, rows])
    results = [FSA().adapted_map(a, z, uniform).apply(values) for a in (attention._replace(scope=None), everywhere)]
    assert torch.equal(*results)


def probes_by_hand(visual, layers, regions):
    """Return one window's probes (R, D): tokens of all regions go through the tower beside the window's own tokens."""
    values, probes = sorted(set(regions.tolist())), []
    for value in values:
        probe = layers[0][0]
        seen = torch.tensor([True, *(regions == value).tolist(), False])
        for block, tokens in zip(visual.transformer.resblocks, layers):
            x = block.ln_1(torch.cat([tokens, probe[None]]))[None]
            mask = torch.zeros(len(x[0]), len(x[0])).masked_fill(~seen, -math.inf)
            mask[:-1] = 0
            attended = block.attn(x, x, x, need_weights=False, attn_mask=mask)[0][0, -1]
            probe = probe + block.ls_1(attended)
            probe = probe + block.ls_2(block.mlp(block.ln_2(probe[None]))[0])
        probes.append(probe)
    return torch.stack(probes)


@pytest.mark.parametrize('count', [2, 8, 30])
def test_probes_equal_tokens_in_the_tower(golden, count):
    """Few probes and many: both ways to compute them; windows have different numbers of regions."""
    visual, crops, _ = golden
    tokens, grid, inner = trunk_and_inner(visual, crops[:2], range(11))
    layers = [*(inner[i] for i in range(11)), tokens]
    torch.manual_seed(0)
    regions = torch.randint(3, 3 + count, (2, 36))
    regions[1] = regions[1].clamp(max=4)
    probes, index = region_probes(visual, layers, regions)
    assert (probes.shape[1] * 4 < 64) == (count < 16) and probes.isfinite().all()
    for i in range(2):
        expected = probes_by_hand(visual, [layer[i] for layer in layers], regions[i])
        torch.testing.assert_close(probes[i, : len(expected)], expected, atol=2e-5, rtol=1e-4)
        values = sorted(set(regions[i].tolist()))
        assert index[i].tolist() == [values.index(value) for value in regions[i].tolist()]


def test_golden_logits(golden):
    """The three branches, spelled out; what CorrCLIP's description leaves open is read so:

    - The scope is that of merged regions; between cells of the smallest label, s > mean(s) decides too.
    - Merged regions come from the VFM's grid to CLIP's by `nearest` (index 0, 2, 4, ...), the smallest label included
      among the regions that get a probe.
    - Probes are spread over CLIP's cells, and these over the VFM's grid by `nearest`.
    - The spatial branch takes the mean of what enters blocks 6 to 10 (outputs of 5 to 9, from 0), L − 2 − 5 to L − 3.
    - Values are projected on CLIP's grid and resized bilinearly; the branches are summed after `ln_post`.
    """
    visual, crops, t = golden
    tokens, grid, inner = trunk_and_inner(visual, crops, range(11))
    layers, block, size = [*(inner[i] for i in range(11)), tokens], visual.transformer.resblocks[-1], (12, 12)
    merged = merge_regions(t['vfm_features'], t['corrclip.regions'])
    attention = scope_map(t['vfm_features'], merged)

    def branch(x):
        values = F.linear(block.ln_1(x), block.attn.in_proj_weight[128:], block.attn.in_proj_bias[128:])[:, 1:]
        return visual.ln_post(block.attn.out_proj(attention.apply(resize_tokens(values, grid, size))))

    probes, index = region_probes(visual, layers, nearest(merged.unflatten(1, size), grid).flatten(1))
    cells = nearest(index.unflatten(1, grid), size).flatten(1)
    semantic = torch.stack([visual.ln_post(of)[cell] for of, cell in zip(probes, cells)])
    total = branch(tokens) + branch(torch.stack(layers[6:11]).mean(0)) + 0.5 * semantic
    logits = F.normalize(total @ visual.proj, dim=-1) @ t['text'].T
    torch.testing.assert_close(logits, t['corrclip.logits'], atol=1e-5, rtol=0)


def test_golden_correction(golden):
    _, _, t = golden
    corrected = correct_labels(t['corrclip.labels'], t['corrclip.label_regions'])
    assert torch.equal(corrected, t['corrclip.corrected']) and not torch.equal(corrected, t['corrclip.labels'])


def test_correction_equals_a_count_of_each_region():
    torch.manual_seed(0)
    labels, regions = torch.randint(0, 5, (21, 17)), torch.randint(0, 30, (21, 17)) * 1000 - 7
    expected = labels.clone()
    for value in regions.unique()[1:]:
        expected[regions == value] = labels[regions == value].mode().values
    assert torch.equal(correct_labels(labels, regions.int()), expected)


def test_correction_by_hand():
    """Region 4: classes 2 and 1 are equal, the smaller wins. Region 1, the smallest, is left as it is."""
    labels = torch.tensor([[2, 1, 2, 1], [0, 3, 3, 0]])
    regions = torch.tensor([[4, 4, 4, 4], [1, 1, 9, 9]])
    assert correct_labels(labels, regions).tolist() == [[1, 1, 1, 1], [0, 3, 0, 0]]
    one = torch.ones_like(regions)
    assert torch.equal(correct_labels(labels, one), labels)


def test_golden_regions_of_features(golden):
    _, _, t = golden
    soft = feature_regions(t['vfm_features'][0].flatten(1), 8)
    torch.testing.assert_close(soft, t['regions_of_features.k8'], atol=1e-5, rtol=0)
    once = feature_regions(t['vfm_features'][0].flatten(1), 8, rounds=1)
    assert (once - soft).abs().max() > 1e-2


def test_farthest_point_seeds_by_hand():
    """The mean's direction is 0 degrees; −170 is the farthest from it, then 10, then −80."""
    angles = torch.tensor([10.0, 0.0, -10.0, -170.0, -80.0, 5.0]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()]) * torch.tensor([1, 9, 1, 1, 1, 1.0])
    for count, order in ((1, [3]), (2, [3, 0]), (3, [3, 0, 4])):
        cosines = (angles[order, None] - angles).cos()
        expected = (cosines / 0.07).softmax(0)
        torch.testing.assert_close(feature_regions(features, count, rounds=1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize('seeds', [1, 3, 4, 64])
def test_fewer_cells_than_seeds(seeds):
    soft = feature_regions(torch.randn(5, 3), seeds)
    assert soft.shape == (min(seeds, 3), 3)
    torch.testing.assert_close(soft.sum(0), torch.ones(3))
    assert feature_regions(torch.zeros(5, 3), seeds).isfinite().all()


def test_correction_of_a_large_map_takes_no_loop_over_regions():
    labels, regions = torch.randint(0, 171, (1024, 1024)), torch.arange(1024 * 1024).view(1024, 1024) // 64
    start = time.perf_counter()
    correct_labels(labels, regions)
    assert time.perf_counter() - start < 5
