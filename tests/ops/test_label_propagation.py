import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fsa_seg.ops import label_propagation
from fsa_seg.ops.label_propagation import patch_graph, propagate_pixels, rgb_to_lab
from fsa_seg.profiling.measured import tensor_peak
from fsa_seg.profiling.self_checks import load_golden

from conftest import ROOT


@pytest.fixture(scope='module')
def golden():
    return load_golden(os.path.join(ROOT, 'tests', 'golden', 'image_seed0.safetensors'))[1]


def patches(windows=3, side=6, width=12, noise=0.5, seed=0):
    """Return features (n, width) of a few kinds, of any length, and centres (n, 2) of windows that overlap by half."""
    torch.manual_seed(seed)
    kinds, count = torch.randn(4, width), windows * side**2
    features = (kinds[torch.arange(count) * 7 % 4] + noise * torch.randn(count, width)) * (0.1 + torch.rand(count, 1))
    corners = torch.arange(windows).repeat_interleave(side**2) * side // 2
    rows, columns = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    return features, 16 * torch.stack([rows.repeat(windows), columns.repeat(windows) + corners], 1) + 8.0


def dense_graph(features, centres, neighbours, gamma=3.0, sigma=0.01):
    """Return the normalised graph (n, n) in float64, one patch after another."""
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    weights = torch.zeros(len(unit), len(unit), dtype=torch.float64)
    for i, own in enumerate(unit):
        cosines = unit @ own
        for j in cosines.argsort(descending=True)[:neighbours].tolist():
            distance = (centres[i].double() - centres[j].double()).norm()
            weights[i, j] = max(cosines[j], 0) ** gamma * torch.exp(-sigma * distance)
    weights = weights + weights.T
    weights.fill_diagonal_(0)
    return normalised(weights)


def dense_pixels(lab, radius=6, tau=0.01):
    """Return the normalised graph (height·width, height·width) of pixels in float64."""
    height, width = lab.shape[1:]
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    near = (place[:, None] - place).abs().amax(2) <= radius
    colours = lab.double().flatten(1).T
    weights = near * torch.exp(-(colours[:, None] - colours).norm(dim=2) / tau)
    weights.fill_diagonal_(0)
    return normalised(weights)


def normalised(weights):
    degrees = weights.sum(1)
    root = torch.where(degrees > 0, degrees, 1) ** -0.5
    return root[:, None] * weights * root


def dense_solution(graph, scores, steps, alpha=0.95):
    """Return Z (n, Q) in float64: textbook conjugate gradients by column, or the solution where steps is None."""
    system, scores = torch.eye(len(graph), dtype=torch.float64) - alpha * graph, scores.double()
    if steps is None:
        return torch.linalg.solve(system, scores)
    columns = []
    for b in scores.T:
        x, r = torch.zeros_like(b), b
        d = r
        for _ in range(steps):
            if r.norm() <= 1e-6 * b.norm():
                break
            length = (r @ r) / (d @ system @ d)
            x, following = x + length * d, r - length * (system @ d)
            d, r = following + (following @ following) / (r @ r) * d, following
        columns.append(x)
    return torch.stack(columns, 1)


def to_dense(graph):
    """Return a PatchGraph as a matrix (n, n)."""
    matrix = torch.zeros(len(graph.starts) - 1, len(graph.starts) - 1)
    for row, (start, end) in zip(matrix, graph.starts.unfold(0, 2, 1).tolist()):
        columns = graph.columns[start:end]
        assert (columns.diff() > 0).all()
        row[columns] = graph.weights[start:end]
    return matrix


def assert_near(actual, expected, tolerance=1e-5):
    """Compare with a tolerance relative to the largest value."""
    bound = tolerance * expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected.double(), atol=bound, rtol=0)


def test_golden_patches(golden):
    graph = patch_graph(golden['lposs.features'], golden['lposs.centres'], neighbours=20)
    torch.testing.assert_close(to_dense(graph).double(), golden['lposs.graph_k20'], rtol=1e-5, atol=1e-12)
    propagated = graph.propagate(golden['lposs.cosines'])
    assert propagated.dtype == torch.float32
    torch.testing.assert_close(propagated.double(), golden['lposs.propagated_k20'], rtol=1e-5, atol=5e-6)
    for wrong in (dict(steps=9), dict(steps=11), dict(alpha=0.951)):
        assert (graph.propagate(golden['lposs.cosines'], **wrong) - golden['lposs.propagated_k20']).abs().max() > 5e-5


def test_golden_pixels(golden):
    scores, expected = golden['lposs.pixel_scores'].T.unflatten(1, (14, 18)), golden['lposs.pixels']
    refined = propagate_pixels(scores.clone(), golden['lposs.lab'])
    assert refined.dtype == torch.float32
    torch.testing.assert_close(refined.flatten(1).T.double(), expected, rtol=1e-5, atol=5e-6)
    for wrong in (dict(steps=9), dict(steps=11), dict(radius=5), dict(tau=0.0101), dict(alpha=0.951)):
        other = propagate_pixels(scores.clone(), golden['lposs.lab'], **wrong)
        assert (other.flatten(1).T - expected).abs().max() > 5e-5


@pytest.mark.parametrize('queries', [1, 5])
@pytest.mark.parametrize('neighbours, options', [(10, {}), (40, dict(gamma=1.5, sigma=0.03)), (1000, {})])
def test_dense_graph_and_propagation(neighbours, options, queries):
    """Overlapping windows have patches of equal centres; 1000 neighbours are more than there are patches."""
    features, centres = patches()
    graph, expected = (
        patch_graph(features, centres, neighbours, **options),
        dense_graph(features, centres, neighbours, **options),
    )
    assert len(centres.unique(dim=0)) < len(centres)
    assert_near(to_dense(graph), expected)
    scores = torch.randn(len(features), queries)
    for steps in (1, 4, 10):
        assert_near(graph.propagate(scores, 0.9, steps), dense_solution(expected, scores, steps, 0.9))
    assert_near(graph.propagate(scores, steps=200), dense_solution(expected, scores, None))


@pytest.mark.parametrize('queries', [1, 4])
@pytest.mark.parametrize('radius, tau', [(6, 0.01), (2, 0.2), (1, 1.0)])
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (9, 1), (3, 4), (11, 17), (17, 11)])
def test_dense_pixels(size, radius, tau, queries):
    """Images smaller than a neighbourhood, too; the image does not wrap."""
    torch.manual_seed(0)
    lab, scores = 2 * tau * torch.rand(3, *size), torch.randn(queries, *size)
    graph = dense_pixels(lab, radius, tau)
    for steps in (1, 4, 10, None):
        refined = propagate_pixels(scores.clone(), lab, radius, tau, 0.9, steps or 300)
        assert_near(refined.flatten(1).T, dense_solution(graph, scores.flatten(1).T, steps, 0.9))


def test_pixels_by_hand():
    """Two pixels of one colour and none near: Ŵ exchanges them, and (z1 + z2)(1 − α) = 1, (z1 − z2)(1 + α) = 1."""
    scores = torch.tensor([[[1.0, 0.0]]])
    expected = torch.tensor([[[20 + 1 / 1.95, 20 - 1 / 1.95]]]) / 2
    torch.testing.assert_close(propagate_pixels(scores, torch.zeros(3, 1, 2)), expected)


@pytest.mark.parametrize('block', [1, 700, 2**30])
def test_blocks_do_not_matter(block, monkeypatch):
    """One row or query at a time, a few, or all; the default is what is compared with."""
    (features, centres), lab = patches(), 0.02 * torch.rand(3, 9, 14)
    scores, pixels = torch.randn(len(features), 3), torch.randn(7, 9, 14)
    graph, refined = patch_graph(features, centres, 20), propagate_pixels(pixels.clone(), lab)
    monkeypatch.setattr(label_propagation, 'BLOCK_VALUES', dict(cpu=block, cuda=block))
    other = patch_graph(features, centres, 20)
    assert_near(to_dense(other), to_dense(graph), 1e-6)
    assert_near(other.propagate(scores), graph.propagate(scores), 1e-6)
    assert_near(propagate_pixels(pixels.clone(), lab), refined, 1e-6)


@pytest.mark.parametrize('count', [1, 2, 7, 30, 101])
@pytest.mark.parametrize('total', [101, 400])
def test_the_greatest_values_of_a_row(total, count):
    """Against a sort; also where a few groups of columns have all of them, and where values are negative."""
    torch.manual_seed(0)
    values = torch.randn(20, total) - 2
    values[0, ::25] += 10
    values[1, :40] += 10
    expected, order = values.sort(1, descending=True)
    greatest, columns = label_propagation._greatest(values, count)
    assert torch.equal(greatest.sort(1, descending=True).values, expected[:, :count])
    assert torch.equal(columns.sort(1).values, order[:, :count].sort(1).values)
    assert torch.equal(values.gather(1, columns), greatest)


def test_the_key_of_a_pair_is_wide_enough():
    """65 536 patches: the number of a pair exceeds 32 bits. Patches i and i + 32 768 are neighbours of each other."""
    total = 2**16
    index = torch.arange(total, dtype=torch.int32)[:, None].repeat(1, 2)
    index[:, 1] = (index[:, 1] + total // 2) % total
    cosines = torch.rand(total // 2, 1).repeat(2, 2)
    low, high, kept, count = label_propagation._pairs(cosines, index)
    expected = torch.arange(total // 2)
    assert torch.equal(low.long(), expected) and torch.equal(high.long(), expected + total // 2)
    assert torch.equal(kept, cosines[: total // 2, 0]) and (count == 2).all()


def test_many_equal_features():
    """Of equal cosines any k are taken: no more, and rows of a flat image do not fill the memory."""
    features, centres = torch.ones(300, 8), 16 * torch.rand(300, 2)
    graph = patch_graph(features, centres, 10)
    dense = to_dense(graph)
    assert 0 < len(graph.weights) <= 2 * 300 * 10
    assert torch.isfinite(dense).all() and torch.equal(dense, dense.T) and (dense.diagonal() == 0).all()
    assert (torch.linalg.eigvalsh(dense.double()).abs() < 1 + 1e-5).all()


def test_copies_of_a_patch_are_neighbours_at_distance_0():
    """Each patch occurs three times, as in overlapping windows; the three are the neighbours of each."""
    features, centres = patches(windows=1)
    graph = to_dense(patch_graph(features.repeat(3, 1), centres.repeat(3, 1), 3))
    same = torch.arange(36).repeat(3)
    expected = 0.5 * (same[:, None] == same).float().fill_diagonal_(0)
    torch.testing.assert_close(graph, expected)


@pytest.mark.parametrize('feature', [0.0, -1.0])
def test_a_patch_without_a_neighbour_keeps_its_scores(feature):
    """Its cosines are all 0 or below; its row of the graph is 0, not NaN."""
    features, centres = patches()
    features[:, 0] = features[:, 0].abs() + 30
    features[5] = 0
    features[5, 0] = feature
    graph, scores = patch_graph(features, centres, 20), torch.randn(len(features), 4)
    dense = to_dense(graph)
    assert (dense[5] == 0).all() and (dense[:, 5] == 0).all() and torch.isfinite(dense).all()
    propagated = graph.propagate(scores, steps=200)
    torch.testing.assert_close(propagated[5], scores[5], atol=1e-4, rtol=0)
    assert_near(propagated, dense_solution(dense.double(), scores, None))


def test_one_patch_alone():
    graph, scores = patch_graph(torch.ones(1, 8), torch.zeros(1, 2)), torch.randn(1, 3)
    assert torch.equal(to_dense(graph), torch.zeros(1, 1))
    torch.testing.assert_close(graph.propagate(scores), scores)


def test_pixels_of_other_colours_keep_their_scores():
    """Every weight is 0 in float32: no degree is divided by."""
    lab, scores = torch.arange(20.0).view(1, 4, 5).repeat(3, 1, 1), torch.randn(2, 4, 5)
    torch.testing.assert_close(propagate_pixels(scores.clone(), lab), scores)


def test_a_column_stops_alone():
    """An eigenvector is solved in one step, zeros in none; both stay as they are while another column moves on."""
    features, centres = patches()
    graph = patch_graph(features, centres, 10)
    values, vectors = torch.linalg.eigh(to_dense(graph).double())
    scores = torch.stack([vectors[:, 3].float(), torch.zeros(len(features)), torch.randn(len(features))], 1)
    propagated = graph.propagate(scores, steps=60)
    torch.testing.assert_close(propagated[:, 0], (vectors[:, 3] / (1 - 0.95 * values[3])).float(), atol=2e-6, rtol=0)
    assert (propagated[:, 1] == 0).all()
    assert torch.equal(propagated, graph.propagate(scores, steps=90))
    assert_near(propagated, dense_solution(to_dense(graph).double(), scores, None))


def test_a_query_does_not_depend_on_others():
    features, centres = patches()
    graph, scores = patch_graph(features, centres, 10), torch.randn(108, 4)
    scores[:, 2] *= 1000
    assert_near(graph.propagate(scores[:, :1]), graph.propagate(scores)[:, :1], 1e-6)


def test_what_is_overwritten():
    """Scores of pixels are, as by the other refinements; nothing else."""
    (features, centres), lab = patches(), 0.02 * torch.rand(3, 9, 14)
    scores, pixels = torch.randn(108, 3), torch.randn(2, 9, 14)
    before = [x.clone() for x in (features, centres, lab, scores, pixels)]
    patch_graph(features, centres, 20).propagate(scores)
    refined = propagate_pixels(pixels, lab)
    for x, old in zip((features, centres, lab, scores), before):
        assert torch.equal(x, old)
    assert refined.data_ptr() == pixels.data_ptr() and not torch.equal(pixels, before[-1])


class LargestTensor(TorchDispatchMode):
    """Notes the most bytes that a tensor holds."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.untyped_storage().nbytes())
        return out


def test_no_tensor_of_all_pairs(monkeypatch):
    """n = 3000, k = 20: no tensor has even a byte for each pair, and the parts are about what k·n entries need."""
    monkeypatch.setattr(label_propagation, 'BLOCK_VALUES', dict(cpu=2**16, cuda=2**16))
    torch.manual_seed(0)
    features, centres, scores = torch.randn(3000, 16), 448 * torch.rand(3000, 2), torch.randn(3000, 5)
    with LargestTensor() as watch:
        patch_graph(features, centres, 20).propagate(scores)
    assert 4 * 3000 * 20 <= watch.most <= 16 * 3000 * 20 < 3000**2


def test_memory_of_pixels(monkeypatch):
    """84 planes, and six tensors of a block of four queries."""
    plane = 4 * 60 * 86
    monkeypatch.setattr(label_propagation, 'BLOCK_VALUES', dict(cpu=plane, cuda=plane))  # of 4 bytes: four planes
    lab, scores = 0.02 * torch.rand(3, 60, 80), torch.randn(40, 60, 80)
    peak = tensor_peak(lambda: propagate_pixels(scores, lab), 'cpu')
    assert 84 * plane < peak < (84 + 6 * 4 + 2) * plane


def test_lab_of_known_colours():
    """Published values of sRGB's primaries, white, black and a grey, under D65; to the digits that are published."""
    known = {
        (255, 255, 255): (100.0, 0.0, 0.0),
        (0, 0, 0): (0.0, 0.0, 0.0),
        (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 255, 0): (87.73, -86.18, 83.18),
        (0, 0, 255): (32.30, 79.19, -107.86),
        (128, 128, 128): (53.59, 0.0, 0.0),
        (1, 1, 1): (0.27, 0.0, 0.0),
    }
    rgb = torch.tensor(list(known)).T[:, :, None] / 255
    lab = rgb_to_lab(rgb)
    expected = torch.tensor(list(known.values())).T[:, :, None]
    assert lab.dtype == torch.float32 and lab.shape == rgb.shape
    torch.testing.assert_close(lab * torch.tensor([100.0, 128.0, 128.0])[:, None, None], expected, atol=0.02, rtol=0)


def test_lab_has_no_steps():
    """The two branches of both functions meet: neighbouring greys of 16 bits stay neighbours."""
    greys = torch.linspace(0, 1, 2**16).expand(3, 1, -1)
    lab = rgb_to_lab(greys)
    assert (lab[0].diff() >= 0).all() and lab[0].diff().max() < 2e-4
    assert lab[1:].abs().max() < 2e-4
