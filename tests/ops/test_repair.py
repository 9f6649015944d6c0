import pytest
import torch

from fsa_seg.ops import reference_methods as reference
from fsa_seg.ops.repair import attended_outliers, cut_similarities, density_outliers, repaired, thresholded_map
from fsa_seg.profiling.measured import tensor_peak


def test_outliers_by_density(monkeypatch):
    """Of two windows; blocks of rows change nothing."""
    torch.manual_seed(0)
    tokens = torch.randn(2, 60, 16) + 30.0  # far from the origin: the digits of distances are kept
    tokens[:, 7] *= 1.5
    found = density_outliers(tokens, 30, 0.05)
    for window, mask in zip(tokens, found):
        assert torch.equal(mask, reference.scclip_outliers(window)) and mask[7] and int(mask.sum()) == 3
    monkeypatch.setattr('fsa_seg.ops.repair.SPAN', 17)
    assert torch.equal(density_outliers(tokens, 30, 0.05), found)


def test_a_patch_is_not_its_own_neighbour():
    """Few neighbours, so that one more or less changes who is an outlier."""
    torch.manual_seed(0)
    tokens = torch.randn(20, 24, 4)
    found = density_outliers(tokens, 2, 0.2)
    assert all(torch.equal(mask, reference.scclip_outliers(window, 2, 0.2)) for window, mask in zip(tokens, found))


def test_tokens_that_are_equal_have_no_outliers():
    assert not density_outliers(torch.ones(1, 40, 8), 30, 0.05).any()


def test_outliers_that_cls_attends(monkeypatch):
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 31, 16)
    k[:, [4, 9]] *= 4
    maps = (q.unflatten(2, (4, 4)).transpose(1, 2) @ k.unflatten(2, (4, 4)).permute(0, 2, 3, 1) / 2).softmax(-1).mean(1)
    for count in (2, 10, 40):
        found = attended_outliers(q, k, 4, count, 1.5)
        for a, mask in zip(maps, found):
            assert torch.equal(mask, reference.sfp_outliers(a, count)) and 0 < int(mask.sum()) <= count
    monkeypatch.setattr('fsa_seg.ops.repair.SPAN', 7)
    assert torch.equal(attended_outliers(q, k, 4, 40, 1.5), found)


@pytest.mark.parametrize('zero', [False, True])
@pytest.mark.parametrize('grid', [(3, 7), (7, 3), (1, 21)])
def test_repair(grid, zero):
    """Many outliers, so that some have no sound neighbour."""
    torch.manual_seed(0)
    tokens, outliers = torch.randn(2, 21, 5), torch.rand(2, 21) < 0.85
    found = repaired(tokens, outliers, grid, zero)
    for window, mask, mended in zip(tokens, outliers, found):
        torch.testing.assert_close(mended, reference.repair(window, mask, grid, zero))
    lost = (found == (0 if zero else tokens)).all(2) & outliers
    assert lost.any() and not lost[outliers].all()


def test_cut_similarities():
    torch.manual_seed(0)
    tokens = torch.randn(1, 12, 3)
    rows = cut_similarities(tokens, 0.4)
    matrix = rows(slice(None))[0]
    torch.testing.assert_close(matrix.sum(1), torch.ones(12))
    unit = tokens[0] / tokens[0].norm(dim=1, keepdim=True)
    assert torch.equal(matrix > 0, unit @ unit.T >= 0.4)
    torch.testing.assert_close(rows(slice(3, 5))[0], matrix[3:5])


def test_thresholded_map():
    torch.manual_seed(0)
    tokens = torch.randn(2, 20, 4)
    attention, values = thresholded_map(tokens, 0.4, 3.0), torch.randn(2, 20, 6)
    assert attention.shared and not attention.covers_cls and attention.row_sum == 1
    for window, value, mixed in zip(tokens, values, attention.apply(values)):
        unit = window / window.norm(dim=1, keepdim=True)
        s = unit @ unit.T
        s = torch.where(s < 0.4, 0.0, s)
        s = (s - s.mean()) * 3
        torch.testing.assert_close(mixed, s.masked_fill(s < 0, float('-inf')).softmax(-1) @ value)


def test_memory_is_two_matrices():
    tokens, grid = torch.randn(1, 900, 32), 4 * 900**2
    assert tensor_peak(lambda: density_outliers(tokens, 30, 0.05), 'cpu') < 2.2 * grid
    assert tensor_peak(lambda: thresholded_map(tokens, 0.4, 3.0), 'cpu') < 2.2 * grid
