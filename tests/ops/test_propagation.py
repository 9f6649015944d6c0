from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from fsa_seg.errors import UserError
from fsa_seg.ops import propagation
from fsa_seg.ops.propagation import TLP, text_similarities, tlp
from fsa_seg.profiling.measured import tensor_peak

PRODUCTS = ('diagonal', 'full')


def scene(queries, height, width, scale=0.1, seed=0):
    """Return random values (Q, height, width), an image of noisy patches, and unit text rows (Q, 16)."""
    torch.manual_seed(seed)
    values, patches = scale * torch.randn(queries, height, width), torch.randn(1, 3, 4, 5)
    image = F.interpolate(patches, (height, width), mode='nearest')[0] + 0.1 * torch.randn(3, height, width)
    return values, image, F.normalize(torch.randn(queries, 16) + 0.5, dim=1)


def pooled(field, cell):
    """Return the means of the whole cells of a field (any, height, width)."""
    (high, wide), (height, width) = cell, field.shape[1:]
    field = field[:, : height // high * high, : width // wide * wide]
    return field.unflatten(2, (-1, wide)).unflatten(1, (-1, high)).mean((2, 4))


def dense_system(z, image, rows, product):
    """Return the matrix C + L (cells, cells) and C (cells), pixel by pixel in float64, from pooled values and image."""
    queries, height, width = z.shape
    relation = (rows @ rows.T / 0.5).exp()
    relation = relation / relation.sum(1, keepdim=True) + 10 * torch.eye(queries)
    relation = relation / relation.sum(1, keepdim=True)
    if product == 'diagonal':
        relation = relation * torch.eye(queries)
    p = (z.exp() / z.exp().sum(0)).flatten(1)
    grey = (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]).flatten()
    cells = range(height * width)
    edges = [(i, i + 1) for i in cells if (i + 1) % width] + [(i, i + width) for i in cells if i + width < len(cells)]
    contrast = sum(abs(grey[i] - grey[j]) for i, j in edges) / len(edges)
    c = torch.stack([max(p[:, i].max(), 0.05) ** 2 * (1 + p[:, i] @ relation @ p[:, i]) for i in cells])
    system = torch.diag(c)
    for i, j in edges:
        agreement = (p[:, i] @ relation @ p[:, j] + p[:, j] @ relation @ p[:, i]) / 2
        weight = min(1, torch.exp(-5 * abs(grey[i] - grey[j]) / contrast) * (1 + agreement))
        system[i, i] += weight
        system[j, j] += weight
        system[i, j] -= weight
        system[j, i] -= weight
    return system, c


def conjugate_gradients(system, target, start, steps):
    """Return the result (cells, Q) of textbook conjugate gradients, the inner product being over cells and queries."""
    x, r = start, target - system @ start
    d = r
    for _ in range(steps):
        alpha = (r * r).sum() / (d * (system @ d)).sum()
        x, following = x + alpha * d, r - alpha * (system @ d)
        d, r = following + (following * following).sum() / (r * r).sum() * d, following
    return x


def reference(values, image, rows, cell, product):
    """Return a function of the steps that gives what TLP should, in float64; for None it solves the system directly."""
    z = pooled(values.double(), cell)
    system, c = dense_system(z, pooled(image.double(), cell), rows.double(), product)
    start, target = z.flatten(1).T, c[:, None] * z.flatten(1).T

    def refined(steps):
        f = torch.linalg.solve(system, target) if steps is None else conjugate_gradients(system, target, start, steps)
        f = f.T.reshape(1, *z.shape)
        return F.interpolate(f, values.shape[1:], mode='bilinear', align_corners=False)[0].float()

    return refined


@pytest.mark.parametrize('product', PRODUCTS)
@pytest.mark.parametrize(
    'queries, size, side, cell, scale',
    [
        (3, (9, 7), 80, (1, 1), 3),  # sides below `side`
        (30, (37, 50), 18, (2, 3), 0.1),  # pixels left over on both sides; max p is below 0.05
        (5, (21, 12), 6, (4, 2), 5),  # 21 / 6 is 3.5, rounded to the even number
    ],
)
def test_dense_reference(queries, size, side, cell, scale, product):
    """After 3, 10 and 25 steps; float32 loses digits as the steps near the number of cells."""
    values, image, rows = scene(queries, *size, scale)
    expected = reference(values, image, rows, cell, product)
    for steps in (3, 10, 25):
        refined = TLP(side, steps, product).refine(values.clone(), image, SimpleNamespace(rows=rows))
        torch.testing.assert_close(refined, expected(steps), atol=3e-5 * scale, rtol=0)
    assert all((expected(3) - expected(other)).abs().max() > 1e-3 * scale for other in (2, 4))


@pytest.mark.parametrize('product', PRODUCTS)
def test_many_steps_give_the_solution(product):
    """They end where the residual is 0, and 25 steps are not there yet."""
    values, image, rows = scene(21, 16, 20)
    expected = reference(values, image, rows, (1, 1), product)(None)
    refined = tlp(values.clone(), image, rows, steps=2000, product=product)
    torch.testing.assert_close(refined, expected, atol=1e-5, rtol=0)
    assert (tlp(values.clone(), image, rows, product=product) - expected).abs().max() > 1e-3


def test_by_hand():
    """One query: p = 1, S = 1, C = 2. The edge weighs min(1, 2·exp(−5·0)) = 1, or 2·exp(−5·1)."""
    values, image, rows = torch.tensor([[[0.0, 1.0]]]), torch.zeros(3, 1, 2), torch.ones(1, 1)
    torch.testing.assert_close(tlp(values.clone(), image, rows), torch.tensor([[[0.25, 0.75]]]))
    image[1, 0, 1] = 3.0
    share = 2 * torch.tensor(-5.0).exp()
    share = share / (2 + 2 * share)
    torch.testing.assert_close(tlp(values.clone(), image, rows), torch.stack([share, 1 - share])[None, None])


def test_text_similarities_by_hand():
    """Two texts at a right angle: exp(1/0.5) and exp(0), over their sum; then 10 more on the diagonal, all over 11."""
    own = 7.3890561 / 8.3890561
    expected = torch.tensor([[10 + own, 1 - own], [1 - own, 10 + own]]) / 11
    torch.testing.assert_close(text_similarities(torch.eye(2)), expected)


def test_the_diagonal_is_what_the_published_code_uses():
    values, image, rows = scene(6, 24, 24, 3)
    default, diagonal, full = (
        tlp(values.clone(), image, rows, 12, **options) for options in ({}, *(dict(product=p) for p in PRODUCTS))
    )
    assert torch.equal(default, diagonal)
    assert 1e-4 < (full - diagonal).abs().max() < 0.1


@pytest.mark.parametrize('product', PRODUCTS)
def test_a_transposed_or_flipped_image_gives_the_same_result(product):
    values, image, rows = scene(6, 24, 36, 3)
    settings = dict(side=12, product=product)
    refined = tlp(values.clone(), image, rows, **settings)
    for turned in (lambda x: x.transpose(1, 2), lambda x: x.flip(1), lambda x: x.flip(2)):
        result = tlp(turned(values).clone(), turned(image).clone(), rows, **settings)
        torch.testing.assert_close(result, turned(refined), atol=1e-5, rtol=0)


def test_edges_of_the_image_stop_the_smoothing():
    """The right half has another grey: noise is smoothed in each half, and the halves stay apart."""
    torch.manual_seed(0)
    image, noise = torch.zeros(3, 16, 16), 0.05 * torch.randn(2, 16, 16)
    image[:, :, 8:] = 1.0
    values = noise.clone()
    values[0, :, 8:] += 1.0
    refined = tlp(values, image, torch.eye(2))
    assert (refined[0, :, :8].abs() < 0.05).all() and ((refined[0, :, 8:] - 1).abs() < 0.05).all()
    assert refined[1].std() < 0.5 * noise[1].std()


def test_an_image_of_one_colour_has_no_edges():
    """Every weight's exponent is 0, where rounding makes greys differ too."""
    values, _, rows = scene(6, 12, 12)
    expected = tlp(values.clone(), torch.zeros(3, 12, 12), rows)
    assert torch.equal(tlp(values.clone(), torch.full((3, 12, 12), 2.0), rows), expected)
    noise = 2e-7 * torch.rand(3, 12, 12)
    torch.testing.assert_close(tlp(values.clone(), 2 + noise, rows), expected, atol=1e-3, rtol=0)
    assert torch.isfinite(expected).all() and (expected - values).abs().max() > 0.1


@pytest.mark.parametrize('product', PRODUCTS)
@pytest.mark.parametrize('queries', [1, 4])
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (9, 1), (2, 2), (5, 130)])
def test_small_sides(queries, size, product):
    """An image of one pixel keeps its values; all are finite, and keep their mean level."""
    values, image, rows = scene(queries, *size)
    level = tlp(values + 100, image, rows, product=product) - tlp(values.clone(), image, rows, product=product)
    torch.testing.assert_close(level, torch.full_like(level, 100.0), atol=1e-3, rtol=0)
    if size == (1, 1):
        assert torch.equal(tlp(values.clone(), image, rows, product=product), values)


def test_values_that_do_not_vary_stay():
    """The first residual is 0: no step is taken, and none divides by 0."""
    _, image, rows = scene(3, 20, 20)
    values = torch.tensor([0.1, 0.2, 0.3])[:, None, None].expand(3, 20, 20).contiguous()
    torch.testing.assert_close(tlp(values.clone(), image, rows), values)


def test_differences_whose_squares_vanish_stay():
    """No step divides by a curvature of 0, where the residual's squares are the smallest numbers that float32 has."""
    values = 1e-20 * torch.eye(2)[0].expand(30, 1, 2).contiguous()
    image, rows = torch.tensor([0.0, 1.0]).expand(3, 1, 2), torch.eye(30)
    torch.testing.assert_close(tlp(values.clone(), image, rows), values, atol=0, rtol=0.1)


def test_zero_steps_keep_the_values():
    values, image, rows = scene(3, 200, 20)
    assert torch.equal(tlp(values.clone(), image, rows, steps=0), values)


@pytest.mark.parametrize('block', [1, 2**30])
def test_values_are_overwritten(block, monkeypatch):
    """One query at a time, or all at once; the refined values take the place of the values."""
    monkeypatch.setattr(propagation, 'BLOCK_VALUES', dict(cpu=block, cuda=block))
    values, image, rows = scene(5, 22, 13)
    expected = reference(values, image, rows, (2, 1), 'diagonal')(9)
    before = values.clone()
    refined = tlp(values, image, rows, 11, 9)
    torch.testing.assert_close(refined, expected, atol=1e-5, rtol=0)
    assert refined.data_ptr() == values.data_ptr() and not torch.equal(values, before)
    assert (refined.shape, refined.dtype) == (before.shape, torch.float32)


@pytest.mark.parametrize('product', PRODUCTS)
def test_memory_is_a_few_pooled_tensors_beside_the_values(product, monkeypatch):
    """One tensor of refined values beside the values is more; so is one (Q, Q, h, w), or a matrix of cells."""
    values, image, rows = scene(60, 96, 128)
    monkeypatch.setattr(propagation, 'BLOCK_VALUES', dict(cpu=4 * 96 * 128, cuda=4 * 96 * 128))
    peak = tensor_peak(lambda: tlp(values, image, rows, 24, product=product), 'cpu')
    assert 0.1 * values.numel() * 4 < peak < 0.5 * values.numel() * 4


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(side=0), r'TLP: side is 0; it has to be a whole number, 1 or more \(published: 80, on Cityscapes 224\)'),
        (dict(side=80.0), r'side is 80\.0'),
        (dict(steps=-1), r'steps is -1; it has to be a whole number, 0 or more \(published: 25\)'),
        (dict(steps=True), r'steps is True'),
        (dict(product='whole'), r"product is 'whole'; it has to be one of 'diagonal', 'full' \(published: "),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        TLP(**settings)


def test_settings_are_attributes():
    part = TLP(side=224, steps=3, product='full')
    assert (part.side, part.steps, part.product, part.refines) == (224, 3, 'full', 'cosines')
    part = TLP()
    assert (part.side, part.steps, part.product) == (80, 25, 'diagonal')
