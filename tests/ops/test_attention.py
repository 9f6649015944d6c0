import pytest
import torch

from fsa_seg.errors import UserError
from fsa_seg.ops.attention import check_map_name, map_rows, neighbour_bias, proxy_map, resize_tokens, self_map


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


def test_map_rows_are_those_of_the_softmax():
    """More tokens than a head has columns: the unit vectors go through in several passes."""
    torch.manual_seed(0)
    q, k, v = projections(1, 11, 8).values()
    attention = self_map('qk', dict(q=q, k=k), heads=2)
    rows = map_rows(attention.apply, 6, v, heads=2)
    split = lambda x: x[0].unflatten(1, (2, 4)).transpose(0, 1)  # noqa: E731
    torch.testing.assert_close(rows, (split(q)[:, 6:7] @ split(k).transpose(1, 2) / 2).softmax(-1)[:, 0])


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
