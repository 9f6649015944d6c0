import math

import pytest
import torch

from fsa_seg.errors import UserError
from fsa_seg.ops import feedback, reference
from fsa_seg.ops.attention import AttentionMap, dense_map, proxy_map, self_map
from fsa_seg.ops.feedback import FSA, adapt, coherence, ensemble, isolate, prune, threshold


def test_isolate_by_hand():
    assert isolate(torch.tensor([[[0.5]]]), torch.tensor([[[0.2]]])).item() == pytest.approx(20 * 0.5 - 35 * 0.2)


def test_coherence_by_hand():
    """P = (3/4, 1/4) and (1/4, 3/4): KL = 1/2·ln 3 either way."""
    delta = torch.tensor([[[math.log(3.0), 0.0], [0.0, math.log(3.0)]]])
    expected = 1 / (1 + 0.5 * math.log(3))
    torch.testing.assert_close(coherence(delta), torch.tensor([[[1.0, expected], [expected, 1.0]]]))


def test_coherence_where_a_probability_is_zero():
    """log(0 + 1e-10) is finite in float32: KL of (1, 0) from (0, 1) is 10·ln 10."""
    delta = torch.tensor([[[200.0, 0.0], [0.0, 200.0]]])
    torch.testing.assert_close(coherence(delta)[0, 0, 1], torch.tensor(1 / (1 + 10 * math.log(10))))


def test_coherence_equals_the_dense_sum():
    torch.manual_seed(0)
    delta = 5 * torch.randn(2, 11, 6)
    torch.testing.assert_close(coherence(delta), 1 / (1 + reference.kl(delta.softmax(-1))), atol=1e-6, rtol=1e-5)


def test_prune_by_hand():
    inf = float('-inf')
    rows = torch.tensor([[[0.0, math.log(2.0), math.log(5.0), 0.0]]])  # softmax: 1/9, 2/9, 5/9, 1/9
    assert prune(rows, 0.4).isinf().tolist() == [[[True, True, False, True]]]  # always the first, though 5/9 > 0.4
    assert prune(rows, 0.8).isinf().tolist() == [[[True, False, False, True]]]  # 7/9 fits
    assert prune(rows, 0.9).isinf().tolist() == [[[False, False, False, False]]]  # 8/9 fits; its equal is kept too
    assert prune(rows, 0.8)[0, 0].tolist() == [inf, rows[0, 0, 1], rows[0, 0, 2], inf]
    assert torch.equal(prune(rows, 1), rows)


ROWS = dict(
    even=lambda x: x,
    narrow=lambda x: 0.96 + 0.04 * x,
    peaked=lambda x: 1 / (1 + 30 * x**8),
    ties=lambda x: (20 * x).round() / 20,
    equal=torch.ones_like,
    one_high=lambda x: (x > 0.99).float(),
)


@pytest.mark.parametrize('p', [0.01, 0.1, 0.45, 0.9, 0.999])
@pytest.mark.parametrize('rows', ROWS)
def test_prune_equals_the_walk_down_each_row(rows, p):
    """Also where many values are equal."""
    torch.manual_seed(0)
    similarity = ROWS[rows](torch.rand(2, 13, 13))
    assert torch.equal(similarity >= threshold(similarity, p), reference.pruned(similarity, p).isfinite())
    similarity = ROWS[rows](torch.rand(1, 300, 300))
    assert torch.equal(similarity >= threshold(similarity, p), similarity >= reference.threshold(similarity, p))


def test_adapt_by_hand():
    """Of the softmax of (1, 0.5, −5) the first two have 0.9985."""
    rows = torch.tensor([[[1.0, 0.5, -5.0]]])
    a, b = math.exp(1 * math.exp(3)), math.exp(0.5 * math.exp(1.5))
    torch.testing.assert_close(adapt(rows, 3.0, 0.999)[0, 0], torch.tensor([a / (a + b), b / (a + b), 0.0]))


def test_ensemble_keeps_cls_to_itself_and_row_sums():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 5, 8).unbind(0)
    attention = self_map('qq+kk', dict(q=q, k=k), heads=2)
    adapted = torch.rand(1, 4, 4).softmax(-1)
    mixed = ensemble(attention, lambda *x: [adapted @ one for one in x], torch.ones(1, 5, 8))
    torch.testing.assert_close(mixed, torch.full((1, 5, 8), 2.0))  # g = 2
    # with A = I the CLS row of W + W + W over three is CLS itself
    identity = AttentionMap(lambda x: x, 1.0, True)
    values = torch.randn(1, 5, 8)
    mixed = ensemble(identity, lambda *x: [adapted @ one for one in x], values)
    torch.testing.assert_close(mixed[:, 0], values[:, 0])
    torch.testing.assert_close(mixed[:, 1:], adapted @ values[:, 1:])


def test_the_largest_lambda_is_a_number():
    z, uniform = torch.rand(1, 6, 4), torch.rand(1, 6, 4)
    assert adapt(FSA().similarities(z, uniform), 80, 0.45).isfinite().all()


@pytest.mark.parametrize('similarity', feedback.SIMILARITIES)
@pytest.mark.parametrize('block', [1, 5, 12, 100])
def test_blocks_of_rows_give_the_same(block, similarity):
    """Also where the last block is smaller, or one holds all."""
    torch.manual_seed(0)
    z, uniform, values = torch.rand(2, 12, 4), torch.rand(2, 1, 4), torch.randn(2, 12, 8)
    features = torch.randn(2, 5, 3, 4)
    whole = FSA(similarity=similarity).adapted_map(proxy_map(features), z, uniform).apply(values)
    in_blocks = FSA(similarity=similarity, block=block).adapted_map(proxy_map(features, block=block), z, uniform)
    blocked = in_blocks.apply(values)
    torch.testing.assert_close(blocked, whole, atol=1e-6, rtol=1e-5)


def test_half_precision_inputs_are_computed_in_float32():
    torch.manual_seed(0)
    z, uniform = (torch.rand(1, 6, 4) / 2).half(), (torch.rand(1, 6, 4) / 2).half()
    adapted = adapt(FSA().similarities(z, uniform), 3.0, 0.45)
    assert adapted.dtype == torch.float32
    torch.testing.assert_close(adapted, reference.adapted_attention(z.float(), uniform.float(), 3.0, 0.45))


def test_isolation_off_and_scales_by_hand():
    z, uniform = torch.tensor([[[0.5]]]), torch.tensor([[[0.2]]])
    assert isolate(z, None).item() == pytest.approx(20 * 0.5)
    assert isolate(z, uniform, 10, 5).item() == pytest.approx(10 * 0.5 - 5 * 0.2)
    off, on = FSA(isolation=False), FSA()
    z, uniform = torch.rand(1, 6, 4), torch.rand(1, 6, 4)
    torch.testing.assert_close(off.similarities(z, uniform), coherence(20 * z))
    torch.testing.assert_close(off.similarities(z, None), coherence(20 * z))
    torch.testing.assert_close(on.similarities(z, uniform), coherence(20 * z - 35 * uniform))


def test_other_similarities_by_hand():
    """P = (3/4, 1/4) and (1/2, 1/2)."""
    delta = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]])
    forth = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    back = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    kl, jeffreys, cosine = (coherence(delta, name)[0] for name in ('kl', 'jeffreys', 'cosine'))
    torch.testing.assert_close(kl, torch.tensor([[1.0, 1 / (1 + forth)], [1 / (1 + back), 1.0]]))
    both = 1 / (1 + (forth + back) / 2)
    torch.testing.assert_close(jeffreys, torch.tensor([[1.0, both], [both, 1.0]]))
    angle = (0.75 + 0.25) * 0.5 / math.sqrt((0.75**2 + 0.25**2) * 0.5)
    torch.testing.assert_close(cosine, torch.tensor([[1.0, angle], [angle, 1.0]]))


@pytest.mark.parametrize('terms', [('WA',), ('AW',), ('W',), ('WA', 'AW'), ('WA', 'W'), ('AW', 'W'), ('W', 'AW', 'WA')])
def test_terms_of_the_ensemble(terms):
    """Each choice equals the products of dense matrices, divided by its count; CLS keeps its identity in W."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 5, 8).unbind(0)
    attention = self_map('qq+kk', dict(q=q, k=k), heads=1)
    a = dense_map(attention.apply, v, heads=1)[None] / 2
    w = torch.block_diag(torch.ones(1, 1), torch.rand(4, 4).softmax(-1))[None]
    products = dict(WA=w @ a, AW=a @ w, W=w)
    expected = 2 * sum(products[term] for term in terms) / len(terms) @ v
    torch.testing.assert_close(
        ensemble(attention, lambda *x: [w[:, 1:, 1:] @ one for one in x], v, terms), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    'settings',
    [
        dict(p=0),
        dict(p=1.5),
        dict(p=float('nan')),
        dict(p='0.4'),
        dict(lam=-1),
        dict(lam=float('nan')),
        dict(lam=True),
        dict(lam=81),
        dict(terms=5),
        dict(terms=[['WA']]),
        dict(isolation=1),
        dict(scale=0),
        dict(uniform_scale=-1),
        dict(similarity='js'),
        dict(terms=()),
        dict(terms=('WA', 'X')),
        dict(terms=('W', 'W')),
        dict(rounds=0),
        dict(rounds=1.5),
        dict(rounds=True),
        dict(block=0),
    ],
)
def test_settings_out_of_range(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        FSA(**settings)
