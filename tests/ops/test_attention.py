import pytest
import torch

from fsa_seg.errors import UserError
from fsa_seg.ops.attention import (
    AttentionMap,
    blocks_at,
    check_map_name,
    dense_map,
    neighbour_bias,
    proxy_map,
    resize_tokens,
    self_map,
    softmax_map,
    weighted_sum,
)


def projections(*shape):
    return dict(zip('qkv', torch.randn(3, *shape).unbind(0)))


@pytest.mark.parametrize(
    'name, row_sum', [('qk', 1), ('qq', 1), ('kk', 1), ('vv', 1), ('qq+kk', 2), ('qq+kk+vv', 3), ('identity', 1)]
)
def test_rows_sum_to_their_constant(name, row_sum):
    attention = self_map(name, projections(2, 7, 8), heads=2)
    assert attention.row_sum == row_sum
    torch.testing.assert_close(attention.apply(torch.ones(2, 7, 8)), torch.full((2, 7, 8), float(row_sum)))


def test_proxy_rows_sum_to_one_and_attend_patches_alone():
    attention = proxy_map(torch.randn(2, 5, 3, 4))
    assert not attention.covers_cls
    torch.testing.assert_close(attention.apply(torch.ones(2, 12, 6)), torch.ones(2, 12, 6))


def test_proxy_by_hand():
    """Two patches at right angles: s is the identity, its mean 1/2; (1 − 0.6)·3 = 1.2, and (0 − 0.6)·3 is pruned."""
    features = torch.tensor([[[[2.0, 0.0]], [[0.0, 5.0]]]])  # (1, C = 2, 1, 2)
    values = torch.tensor([[[1.0], [10.0]]])
    assert proxy_map(features).apply(values).flatten().tolist() == [1, 10]
    # with β = 0 nothing is below zero: softmax of (3, 0) puts 1/(1 + e⁻³) on the patch itself
    own = 1 / (1 + torch.tensor(-3.0).exp())
    expected = torch.stack([own + 10 * (1 - own), 10 * own + (1 - own)])
    torch.testing.assert_close(proxy_map(features, beta=0).apply(values).flatten(), expected)


def test_proxy_mean_is_each_images_own():
    torch.manual_seed(0)
    one, other = torch.randn(2, 1, 6, 3, 3) + torch.tensor([0.0, 0.5])[:, None, None, None, None]
    values = torch.randn(2, 9, 4)
    both = proxy_map(torch.cat([one, other])).apply(values)
    torch.testing.assert_close(both[:1], proxy_map(one).apply(values[:1]))
    torch.testing.assert_close(both[1:], proxy_map(other).apply(values[1:]))


def test_proxy_of_a_blank_image_attends_each_patch_itself():
    """All features alike: mean(s) = 1, so 1 − β is below zero everywhere, the diagonal included."""
    values = torch.randn(1, 6, 4)
    torch.testing.assert_close(proxy_map(torch.ones(1, 5, 2, 3)).apply(values), values)


def test_heads_keep_to_their_columns():
    apply = self_map('qk', projections(1, 5, 8), heads=2).apply
    values = torch.randn(1, 5, 8)
    changed = values.clone()
    changed[..., 4:] += 1
    torch.testing.assert_close(apply(values)[..., :4], apply(changed)[..., :4])


def test_resize_tokens_keeps_rows_and_columns():
    tokens = torch.arange(6.0)[None, :, None]  # grid (2, 3), row by row
    assert resize_tokens(tokens, (2, 3), (2, 3)) is tokens
    resized = resize_tokens(tokens, (2, 3), (4, 3)).unflatten(1, (4, 3))[0, ..., 0]
    torch.testing.assert_close(resized[:, 0], torch.tensor([0.0, 0.75, 2.25, 3.0]))


def test_the_dense_map_is_the_softmax():
    """More tokens than a head has columns: the unit vectors go through in several passes."""
    torch.manual_seed(0)
    q, k, v = projections(1, 11, 8).values()
    attention = self_map('qk', dict(q=q, k=k), heads=2)
    matrix = dense_map(attention.apply, v, heads=2)
    split = lambda x: x[0].unflatten(1, (2, 4)).transpose(0, 1)  # noqa: E731
    torch.testing.assert_close(matrix, (split(q) @ split(k).transpose(1, 2) / 2).softmax(-1).mean(0))


def test_a_bias_is_added_after_the_scaling():
    q, bias = torch.randn(1, 5, 8), torch.randn(5, 5)
    values = torch.randn(1, 5, 8)
    apply = self_map('qq', dict(q=q), 1, bias).apply
    expected = (q @ q.transpose(1, 2) / 8**0.5 + bias).softmax(-1) @ values
    torch.testing.assert_close(apply(values), expected, atol=1e-6, rtol=1e-6)


def test_neighbour_bias_by_hand():
    """Patches (0, 0) and (1, 2) of a grid are √5 apart; CLS has no bias."""
    bias = neighbour_bias((2, 3), sigma=2.0)
    assert bias.shape == (7, 7) and bias[0].eq(0).all() and bias[:, 0].eq(0).all()
    torch.testing.assert_close(bias[1, 6], torch.tensor(-5 / 8).exp())
    assert bias.diagonal()[1:].eq(1).all() and torch.equal(bias, bias.T)


@pytest.mark.parametrize(
    'name, message',
    [
        ('qx', "did you mean 'qq'|unknown attention map 'qx'"),
        ('identity+qq', 'unknown attention map'),
        (3, 'name it by a text'),
    ],
)
def test_unknown_maps(name, message):
    with pytest.raises(UserError, match=message):
        check_map_name(name)


def split(x, heads=2):
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def dense(x, y, values, bias=0.0, factor=1.0, heads=2):
    """Return softmax(factor·xyᵀ/√d + bias)·values; d is the width of a head of the values."""
    x, y, values = (split(tensor, heads) for tensor in (x, y, values))
    weights = (factor * x @ y.transpose(2, 3) / values.shape[-1] ** 0.5 + bias).softmax(-1)
    return (weights @ values).transpose(1, 2).flatten(2)


def test_a_softmax_of_wider_queries_scales_by_the_values_width():
    x, y, values = torch.randn(2, 7, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 8)
    bias = torch.randn(2, 7, 7)
    torch.testing.assert_close(softmax_map(x, y, values, 2), dense(x, y, values))
    found = softmax_map(x, y, values, 2, bias, 1.5)
    torch.testing.assert_close(found, dense(x, y, values, bias[:, None], 1.5))


@pytest.mark.parametrize('own_bias', [False, True])
def test_other_logits_of_a_sum_of_softmaxes(own_bias):
    """factor·s + bias, twice; a bias of the map's own is not scaled."""
    parts, values = projections(2, 5, 8), torch.randn(2, 5, 8)
    own = torch.randn(5, 5) if own_bias else None
    first, second = torch.randn(2, 5, 5), torch.randn(2, 5, 5)
    attention = self_map('qq+kk', parts, 2, own).with_logits(2.0, first.clone())
    bias = (first + (own if own_bias else 0))[:, None]
    expected = sum(dense(parts[x], parts[x], values, bias, 2.0) for x in 'qk')
    torch.testing.assert_close(attention.apply(values), expected)
    again = attention.with_logits(0.5, second.clone())
    expected = sum(dense(parts[x], parts[x], values, bias + second[:, None], 1.0) for x in 'qk')
    torch.testing.assert_close(again.apply(values), expected)
    assert again.row_sum == 2 and self_map('identity', {}, 2).with_logits is None


@pytest.mark.parametrize('block', [None, 4])
def test_other_logits_of_a_proxy_map(block):
    """What was pruned stays pruned."""
    torch.manual_seed(0)
    features, values, bias = torch.randn(1, 6, 3, 4), torch.randn(1, 12, 5), torch.randn(1, 12, 12)
    unit = torch.nn.functional.normalize(features.flatten(2)[0], dim=0)
    s = unit.T @ unit
    s = (s - 1.2 * s.mean()) * 3
    logits = torch.where(s < 0, float('-inf'), 0.5 * s + bias[0])
    found = proxy_map(features, block=block).with_logits(0.5, bias)
    torch.testing.assert_close(found.apply(values)[0], logits.softmax(-1) @ values[0])
    assert (logits == float('-inf')).any() and found.grid == (3, 4) and found.shared


def test_a_weighted_sum():
    """Its rows' sum, and other logits of the maps that have logits."""
    parts, values, bias = projections(2, 5, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 5)
    prior = torch.randn(5, 5)
    qk, kk, fixed = self_map('qk', parts, 2, prior), self_map('kk', parts, 2), self_map('qq+kk', parts, 2)
    total = weighted_sum([(0.5, qk), (2.0, kk), (3.0, fixed._replace(with_logits=None))])
    torch.testing.assert_close(total.row_sum, 0.5 + 2 + 6)
    rest = 3 * fixed.apply(values)
    torch.testing.assert_close(total.apply(values), 0.5 * qk.apply(values) + 2 * kk.apply(values) + rest)
    other = total.with_logits(1.5, bias.clone())
    own = [dense(parts[x], parts['k'], values, bias[:, None] + more, 1.5) for x, more in (('q', prior), ('k', 0))]
    torch.testing.assert_close(other.apply(values), 0.5 * own[0] + 2 * own[1] + rest)
    assert weighted_sum([(1.0, fixed._replace(with_logits=None))]).with_logits is None
    unknown = AttentionMap(lambda v: v, None, True)
    assert weighted_sum([(1.0, qk), (1.0, unknown)]).row_sum is None and not total.shared


@pytest.mark.parametrize(
    'depth, blocks', [(12, (4, 9, 10)), (24, (8, 18, 20)), (32, (10, 24, 26)), (5, (1, 3, 3)), (4, (1, 2, 2))]
)
def test_blocks_as_deep_as_those_of_twelve(depth, blocks):
    assert blocks_at((4, 9, 10), depth) == blocks


def test_a_tower_too_shallow():
    with pytest.raises(
        UserError, match='has 3 blocks, and the method needs at least 4: .* as deep as 4, 9 of 12 .from 0.'
    ):
        blocks_at((4, 9), 3)
