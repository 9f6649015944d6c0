import math

import pytest
import torch

from fsa_seg import patch_logits
from fsa_seg.errors import UserError
from fsa_seg.models.clip import trunk
from fsa_seg.models.window import token_logits, window_cosines
from fsa_seg.ops.attention import AttentionMap
from fsa_seg.ops.feedback import FSA
from fsa_seg.ops.reference_methods import affinity
from fsa_seg.ops.sfr import SFR, SFRAndFSA, label_affinity
from fsa_seg.profiling.measured import tensor_peak


@pytest.mark.parametrize('grid', [(1, 2), (2, 1), (1, 7), (4, 4), (3, 6), (6, 3), (9, 8)])
def test_affinity_is_that_of_the_dense_reference(grid):
    torch.manual_seed(0)
    for count in (1, 2, 4):
        labels = torch.randint(0, count, (grid[0] * grid[1],))
        torch.testing.assert_close(label_affinity(labels, grid, 5.0), affinity(labels, grid))


def test_affinity_pair_by_pair():
    """By walks between single patches, one label apart in the middle, and the blur written out."""
    grid, sigma = (3, 5), 2.0
    labels = torch.tensor([1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1])
    most, raw = 4, torch.zeros(15, 15)
    for i in range(15):
        for j in range(15):
            (a, b), (c, d) = divmod(i, 5), divmod(j, 5)
            reach = max(abs(a - c), abs(b - d))
            points = []
            for step in range(reach + 1):
                f = torch.tensor(step / most)
                row, column = (round(float(x * (1 - f) + y * f)) for x, y in ((a, c), (b, d)))
                points.append(int(labels[row * 5 + column]))
            if labels[i] == labels[j]:
                raw[i, j] = 1 if set(points) == {int(labels[i])} else math.exp(-reach / most)
    assert 0 < int(((raw > 0) & (raw < 1)).sum()) < 100  # some ways are cut
    blurred = torch.zeros_like(raw)
    for j in range(15):
        weights = torch.tensor([math.exp(-((j - k) ** 2) / (2 * sigma**2)) for k in range(15)])
        blurred[:, j] = (raw * weights).sum(1)
    blurred /= blurred.sum(1, keepdim=True)
    torch.testing.assert_close(label_affinity(labels, grid, sigma), blurred / blurred.max(), atol=1e-5, rtol=1e-5)


def test_blocks_of_rows_change_nothing(monkeypatch):
    labels = torch.randint(0, 3, (48,), generator=torch.Generator().manual_seed(0))
    whole = label_affinity(labels, (6, 8), 5.0)
    monkeypatch.setattr('fsa_seg.ops.sfr.BLOCK_ENTRIES', 8 * 2 * 8 * 48)
    torch.testing.assert_close(label_affinity(labels, (6, 8), 5.0), whole)


def test_memory_is_two_matrices(monkeypatch):
    monkeypatch.setattr('fsa_seg.ops.sfr.BLOCK_ENTRIES', 2**17)
    labels = torch.randint(0, 3, (576,))
    assert tensor_peak(lambda: label_affinity(labels, (24, 24), 5.0), 'cpu') < 2 * 4 * 576**2


def cosines(labels, queries, value=1.0):
    """Return cosines (1, N, Q) of patches that have these labels."""
    return value * torch.nn.functional.one_hot(torch.tensor(labels), queries).float()[None]


def test_labels_of_patches():
    """Clear cosines keep their labels; below the threshold all are query 0."""
    z = cosines([3, 3, 1, 1, 2, 2], 5)[0]
    image = torch.zeros(3, 32, 48)
    assert SFR(threshold=0.3, steps=0)._labels(z, (2, 3), image).tolist() == [3, 3, 1, 1, 2, 2]
    assert SFR(threshold=1.0, steps=0)._labels(z * 0.01, (2, 3), image).tolist() == [0] * 6
    fine = SFR(threshold=0.3, steps=0)._labels(z, (2, 3), torch.zeros(3, 31, 47))  # patches do not divide the window
    assert fine.tolist() == [3, 3, 1, 1, 2, 2]


def test_of_two_queries_as_frequent_the_first_counts(monkeypatch):
    """Each half of a patch's pixels has another query; and of two equal pixels' queries the first counts as well."""
    pixels = torch.zeros(5, 16, 32)
    pixels[3, :, :8] = pixels[1, :, 8:16] = pixels[2, :, 16:] = pixels[4, :, 16:] = 1.0
    monkeypatch.setattr('fsa_seg.ops.sfr.pamr', lambda *_: pixels)
    found = SFR(threshold=0)._labels(torch.zeros(2, 5), (1, 2), torch.zeros(3, 16, 32))
    assert found.tolist() == [1, 2]


def test_both_in_turn_is_fsa_on_the_map_of_sfr(tiny):
    visual, text = tiny
    images = torch.randn(2, 3, 64, 96)
    tokens, grid = trunk(visual, images)
    windows = window_cosines(visual, tokens, grid, text, 'naclip', images=images)
    sfr = SFR(threshold=0.2)
    adapted = sfr.adapted_map(windows, windows.attention, windows.first)
    z = windows.cosines(adapted)
    expected = windows.cosines(FSA(lam=2.0).adapted_map(adapted, z, windows.uniform))
    both = dict(type='SFRAndFSA', sfr_threshold=0.2, lam=2.0)
    logits, _ = patch_logits(visual, images, text, method='naclip', feedback=both)
    torch.testing.assert_close(logits, expected)
    rounds = list(windows.rounds(SFRAndFSA(sfr_threshold=0.2, lam=2.0, rounds=2)))
    assert len(rounds) == 4 and torch.equal(rounds[1], z) and torch.equal(rounds[2], expected)


def test_a_map_on_a_vfms_grid(tiny):
    """ProxyCLIP's map is a softmax of logits too; entries that were pruned stay so."""
    visual, text = tiny
    images, features = torch.randn(1, 3, 64, 96), torch.randn(1, 12, 8, 12)
    bare, grid = patch_logits(visual, images, text, method='proxyclip', vfm_features=features)
    logits, same = patch_logits(
        visual, images, text, method='proxyclip', feedback=dict(type='SFR'), vfm_features=features
    )
    assert grid == same == (8, 12) and logits.isfinite().all() and (logits - bare).abs().max() > 1e-4


def test_refused(tiny):
    visual, text = tiny
    images = torch.randn(1, 3, 64, 96)
    tokens, grid = trunk(visual, images)
    with pytest.raises(UserError, match="SCLIP: SFR sees the windows' pixels; pass images"):
        token_logits(visual, tokens, grid, text, method='sclip', feedback=dict(type='SFR'))
    with pytest.raises(UserError, match='SCLIP: SFR needs at least 2 patches; the window has one'):
        patch_logits(visual, images[..., :16, :16], text, method='sclip', feedback=dict(type='SFR'))
    windows = window_cosines(visual, tokens, grid, text, 'sclip', images=images)
    with pytest.raises(UserError, match='SCLIP: SFR adapts the logits of a softmax, and this attention map is none'):
        SFR().adapted_map(windows, AttentionMap(lambda v: v, 1.0, True), windows.first)
    with pytest.raises(UserError, match="unknown feedback 'SFRR'"):
        patch_logits(visual, images, text, method='sclip', feedback=dict(type='SFRR'))
    with pytest.raises(UserError, match="unknown key 'settings' in feedback.*its keys: .*lam, .*sfr_tau"):
        patch_logits(visual, images, text, method='sclip', feedback=dict(type='SFRAndFSA', settings=1))
    with pytest.raises(UserError, match="unknown key 'p'"):
        patch_logits(visual, images, text, method='sclip', feedback=dict(type='SFR', p=0.5))


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(tau=0), r'SFR: tau is 0; it has to be above 0 \(published: 1.8 to 2.2\)'),
        (dict(lam=1), 'lam is 1; it has to be at least 0 and below 1'),
        (dict(threshold=1.1), 'threshold is 1.1; it has to be from 0 to 1'),
        (dict(scale=-1), 'scale is -1; it has to be above 0'),
        (dict(sigma=0), 'sigma is 0; it has to be at least 0.1'),
        (dict(steps=-1), 'PAMR: steps is -1'),
        (dict(dilations=[]), 'PAMR: dilations'),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        SFR(**settings)
    with pytest.raises(UserError, match=message):
        SFRAndFSA(**{f'sfr_{key}': value for key, value in settings.items()})
