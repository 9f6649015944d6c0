import pytest
import timm
import torch
from mmseg.registry import MODELS
from safetensors.torch import save_file
from timm.models import vision_transformer
from torchvision.transforms.functional import normalize

from fsa_seg.config.components import component_config, load_component
from fsa_seg.config.compose import compose
from fsa_seg.config.suites import load_suite
from fsa_seg.errors import UserError
from fsa_seg.methods import find_method
from fsa_seg.models.vfm import TimmRoPEViT, TimmSAM, TimmViT, check_vfm, position_differences, run_vfm
from fsa_seg.ops.affinity import unpack_attention
from fsa_seg.ops.attention import named_map
from fsa_seg.profiling.architectures import ArchitectureRuns

from conftest import MINI

ARGS = dict(patch_size=8, embed_dim=24, depth=2, num_heads=2, img_size=32)


@pytest.fixture
def make(tmp_path):
    def make(model='vit_tiny_patch16_224', args=ARGS, **options):
        torch.manual_seed(0)
        vit = timm.create_model(model, num_classes=0, **args)
        save_file(vit.state_dict(), tmp_path / 'vfm.safetensors')
        return TimmViT(model, str(tmp_path / 'vfm.safetensors'), args, **options)

    return make


@pytest.mark.parametrize('pos_embed', ['offset', 'size', 'timm'])
@pytest.mark.parametrize(
    'model, args',
    [
        ('vit_tiny_patch16_224', ARGS),
        ('vit_small_patch14_reg4_dinov2', dict(embed_dim=24, depth=2, num_heads=2, patch_size=8, img_size=32)),
    ],
)
def test_trained_size_equals_timms_own_features(make, model, args, pos_embed):
    vfm = make(model, args, pos_embed=pos_embed)
    images = torch.rand(2, 3, 32, 32)
    tokens = vfm.vit.forward_features(normalize(images, vfm.mean, vfm.std))[:, vfm.vit.num_prefix_tokens :]
    torch.testing.assert_close(vfm(images).flatten(2).transpose(1, 2), tokens, atol=1e-5, rtol=1e-5)


def test_other_sizes(make):
    images = torch.rand(1, 3, 40, 64)
    offset, size, timms = make(), make(pos_embed='size'), make(pos_embed='timm')
    assert offset.grid(40, 64) == (5, 8)
    assert offset(images).shape == size(images).shape == timms(images).shape == (1, 24, 5, 8)
    tokens = timms.vit.forward_features(normalize(images, timms.mean, timms.std))[:, 1:]
    torch.testing.assert_close(timms(images).flatten(2).transpose(1, 2), tokens)
    assert (offset(images) - timms(images)).abs().max() > 1e-4  # the resizes differ
    assert (offset(images) - size(images)).abs().max() > 1e-4
    assert (size(images) - timms(images)).abs().max() > 1e-4


def test_sam_takes_any_window(tmp_path):
    """A window is resized to the tower's input, so that all windows have the same grid."""
    torch.manual_seed(0)
    args = dict(embed_dim=24, depth=2, num_heads=2, img_size=64, window_size=3, global_attn_indexes=(1,))
    vit = timm.create_model('samvit_base_patch16', num_classes=0, **args)
    state = {'image_encoder.' + key.replace('mlp.fc', 'mlp.lin'): value for key, value in vit.state_dict().items()}
    torch.save(dict(state, **{'mask_decoder.x': torch.zeros(1)}), tmp_path / 'sam_vit_b.pth')  # the publisher's names
    sam = TimmSAM('samvit_base_patch16', str(tmp_path / 'sam_vit_b.pth'), args)
    images = torch.rand(2, 3, 50, 37)
    assert sam.multiple == (1, 1) and tuple(sam.grid(50, 37)) == (4, 4)
    resized = torch.nn.functional.interpolate(normalize(images, sam.mean, sam.std), (64, 64), mode='bilinear')
    torch.testing.assert_close(sam(images), vit.eval().forward_features(resized), atol=1e-5, rtol=1e-4)
    assert sam(images).shape == (2, 256, 4, 4)


def test_the_publishers_files(tmp_path):
    """MAE's file has its weights under 'model'; DINOv2's has a mask token, and its position embedding covers CLS."""
    torch.manual_seed(0)
    vit = timm.create_model('vit_tiny_patch16_224', num_classes=0, **ARGS)
    torch.save(dict(model=vit.state_dict()), tmp_path / 'mae.pth')
    images = torch.rand(1, 3, 32, 32)
    mae = TimmViT('vit_tiny_patch16_224', str(tmp_path / 'mae.pth'), ARGS, pos_embed='size')
    tokens = vit.eval().forward_features(normalize(images, mae.mean, mae.std))
    torch.testing.assert_close(mae(images).flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-5, rtol=1e-4)
    name = 'vit_small_patch14_reg4_dinov2'
    vit = timm.create_model(name, num_classes=0, **ARGS)
    state = vit.state_dict()
    cls = torch.randn(1, 1, 24)  # the publisher adds a position embedding to CLS; timm keeps the sum
    state.update(
        register_tokens=state.pop('reg_token'),
        mask_token=torch.zeros(1, 24),
        cls_token=state['cls_token'] - cls,
        pos_embed=torch.cat([cls, state['pos_embed']], 1),
    )
    torch.save(state, tmp_path / 'dinov2.pth')
    dinov2 = TimmViT(name, str(tmp_path / 'dinov2.pth'), ARGS, pos_embed='timm')
    tokens = vit.eval().forward_features(normalize(images, dinov2.mean, dinov2.std))
    torch.testing.assert_close(dinov2(images).flatten(2).transpose(1, 2), tokens[:, 5:], atol=1e-5, rtol=1e-4)


DINOV3_ARGS = dict(patch_size=8, embed_dim=48, depth=2, num_heads=2, img_size=32)


def dinov3(name='vit_small_patch16_dinov3'):
    """Return a small DINOv3 of timm, no parameter at its (neutral) initial value."""
    torch.manual_seed(0)
    vit = timm.create_model(name, num_classes=0, **DINOV3_ARGS).eval().requires_grad_(False)
    for parameter in vit.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return vit


def publishers_dinov3(vit, bias=0.0):
    """Return a state of timm's DINOv3 under the names of its publisher's file."""
    names = dict(gamma_1='ls1.gamma', gamma_2='ls2.gamma', reg_token='storage_tokens')
    state = {}
    for key, value in vit.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        state[key] = value
    for i in range(2):
        q, v = (state.pop(f'blocks.{i}.attn.{part}_bias', torch.full((48,), bias)) for part in 'qv')
        state[f'blocks.{i}.attn.qkv.bias'] = torch.cat([q, torch.ones(48), v])  # the bias of k is masked
        state[f'blocks.{i}.attn.qkv.bias_mask'] = torch.ones(144)
    return dict(state, mask_token=torch.zeros(1, 48), **{'rope_embed.periods': vit.rope.periods.bfloat16()})


@pytest.mark.parametrize('name', ['vit_small_patch16_dinov3', 'vit_small_patch16_dinov3_qkvb'])
@pytest.mark.parametrize('publishers', [False, True])
def test_dinov3(name, publishers, tmp_path, capsys):
    """The features of timm's patch tokens, from timm's files and the publisher's, for windows of any grid."""
    vit = dinov3(name)
    path = tmp_path / 'dinov3.pth'
    torch.save(publishers_dinov3(vit) if publishers else vit.state_dict(), path)
    vfm = TimmRoPEViT(name, str(path), DINOV3_ARGS)
    assert capsys.readouterr().out == ''
    for height, width in ((32, 32), (24, 80), (8, 8)):
        images = torch.rand(2, 3, height, width)
        expected = vit.forward_features(normalize(images, vfm.mean, vfm.std))[:, 5:]
        features = vfm(images)
        assert vfm.grid(height, width) == tuple(features.shape[2:]) == (height // 8, width // 8)
        torch.testing.assert_close(features.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(features, vfm(images))  # no augmentation of positions


def test_dinov3s_positions_follow_the_windows_grid():
    """Rotations depend on a patch's place in the window alone: the published rule, computed by hand."""
    vfm = TimmRoPEViT('vit_small_patch16_dinov3', model_args=DINOV3_ARGS, random_weights=0)
    for grid in ((4, 4), (3, 10)):
        places = [(torch.arange(side) + 0.5) / side * 2 - 1 for side in grid]
        rows, columns = torch.meshgrid(*places, indexing='ij')
        periods = 100 ** (torch.arange(6) / 6)  # 24 columns of a head
        angles = torch.cat([2 * torch.pi * place.flatten()[:, None] / periods for place in (rows, columns)], 1)
        sin, cos = vfm.vit.rope.get_embed(shape=grid).chunk(2, -1)
        torch.testing.assert_close(sin, angles.sin().tile(2), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(cos, angles.cos().tile(2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_dinov3_in_half_precision(dtype, tmp_path):
    vit = dinov3()
    save_file(vit.state_dict(), tmp_path / 'dinov3.safetensors')
    vfm = TimmRoPEViT('vit_small_patch16_dinov3', str(tmp_path / 'dinov3.safetensors'), DINOV3_ARGS)
    images = torch.rand(1, 3, 24, 80)
    full, half = vfm(images), vfm.to(dtype)(images)
    assert half.dtype == dtype and {parameter.dtype for parameter in vfm.parameters()} == {dtype}
    assert vfm.vit.rope.periods.dtype == torch.float32
    assert torch.cosine_similarity(full, half.float(), 1).min() > 0.99


def test_files_that_are_no_dinov3(tmp_path):
    """Another patch size, missing registers, biases that timm would drop in silence, a DINOv2."""
    vit = dinov3()
    state = vit.state_dict()
    files = dict(
        patch=dict(state, **{'patch_embed.proj.weight': torch.zeros(48, 3, 16, 16)}),
        registers={key: value for key, value in state.items() if key != 'reg_token'},
        biases=publishers_dinov3(vit, bias=0.1),
        dinov2=timm.create_model('vit_small_patch14_dinov2', num_classes=0, **DINOV3_ARGS).state_dict(),
    )
    messages = dict(
        patch='size mismatch for patch_embed.proj.weight',
        registers='1 keys missing .reg_token',
        biases='no place for blocks.0.attn.qkv.bias; timm has such models as ..._qkvb',
        dinov2='the file has position embeddings, which the model lacks',
    )
    for kind, content in files.items():
        torch.save(content, tmp_path / f'{kind}.pth')
        with pytest.raises(UserError, match=f'do not fit.*{messages[kind]}'):
            TimmRoPEViT('vit_small_patch16_dinov3', str(tmp_path / f'{kind}.pth'), DINOV3_ARGS)
    with pytest.raises(UserError, match="no ViT with DINOv3's rotary position embeddings alone"):
        TimmRoPEViT('vit_tiny_patch16_224', model_args=ARGS, random_weights=0)
    with pytest.raises(UserError, match='a window of 30×32 pixels does not divide into the patches'):
        TimmRoPEViT('vit_small_patch16_dinov3', model_args=DINOV3_ARGS, random_weights=0)(torch.rand(1, 3, 30, 32))


def test_dinov2_without_registers_has_its_publishers_rule():
    """Scale factors (n + 0.1)/s, bicubic, without antialiasing: the position embeddings by hand."""
    for name in ('dinov2_vit-b14-noreg', 'dinov2_vit-s14-noreg'):
        small = dict(embed_dim=24, depth=1, num_heads=2)
        vfm = MODELS.build(dict(component_config(load_component('vfm', name), 0), model_args=small))
        assert vfm.vit.num_prefix_tokens == 1 and vfm.vit.pos_embed.shape[1] == 37**2 + 1
        position = vfm.vit.pos_embed[0, 1:].T.reshape(1, 24, 37, 37)
        scale = (24.1 / 37, 10.1 / 37)
        resized = torch.nn.functional.interpolate(position, scale_factor=scale, mode='bicubic', align_corners=False)
        empty = torch.zeros(1, 3, 24 * 14, 10 * 14)
        found = vfm._embed(empty, (24, 10))[0, 1:] - vfm.vit.patch_embed(empty).flatten(1, 2)[0]
        torch.testing.assert_close(found, resized[0].flatten(1).T, atol=1e-5, rtol=1e-5)


def test_differences_of_position_rules_with_random_and_with_trained_weights(tmp_path):
    """None at the trained size, and none of timm's rule from itself; trained weights give other figures than random."""
    torch.manual_seed(3)
    state = timm.create_model('vit_tiny_patch16_224', num_classes=0, **ARGS).state_dict()
    save_file(state, tmp_path / 'trained.safetensors')
    config = dict(type='TimmViT', model='vit_tiny_patch16_224', model_args=ARGS)
    config.update(checkpoint=str(tmp_path / 'trained.safetensors'))
    random, trained = (position_differences(config, (32, 48), seed) for seed in (0, None))
    assert random[0] < 1e-6 > trained[0] and random[1] > 1e-4 < trained[1] and random[1] != trained[1]
    assert position_differences(dict(config, pos_embed='timm'), (32, 48), None) == [0, 0]
    images = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    own, timms = (MODELS.build(dict(config, pos_embed=rule))(images) for rule in ('offset', 'timm'))
    assert trained[1] == pytest.approx(float((own - timms).norm() / timms.norm()), rel=1e-4)
    config.update(checkpoint='gone.safetensors')
    with pytest.raises(UserError, match='gone.safetensors.* does not exist'):
        position_differences(config, (32,), None)


def test_a_file_of_other_patches_or_another_grid_is_refused(tmp_path):
    """timm would resize both in silence."""
    for change in (dict(patch_size=16), dict(img_size=64)):
        vit = timm.create_model('vit_tiny_patch16_224', num_classes=0, **{**ARGS, **change})
        save_file(vit.state_dict(), tmp_path / 'other.safetensors')
        with pytest.raises(
            UserError, match='do not fit.*size mismatch for (patch_embed.proj.weight|pos_embed): .* in the file'
        ):
            TimmViT('vit_tiny_patch16_224', str(tmp_path / 'other.safetensors'), ARGS)


def test_random_weights_are_those_of_their_seed():
    vfms = [TimmViT('vit_tiny_patch16_224', model_args=ARGS, random_weights=seed) for seed in (0, 0, 1)]
    images = torch.rand(1, 3, 32, 32)
    seed_0, again, seed_1 = (vfm(images) for vfm in vfms)
    assert torch.equal(seed_0, again) and not torch.equal(seed_0, seed_1)


def test_grid_keeps_rows_and_columns(make):
    """A change in the upper right corner changes that corner's feature most."""
    vfm = make()
    images = torch.rand(1, 3, 32, 48)
    changed = images.clone()
    changed[..., :8, -8:] = 1 - changed[..., :8, -8:]
    change = (vfm(images) - vfm(changed)).square().sum(1)[0]
    assert divmod(int(change.argmax()), change.shape[1]) == (0, 5)


SAM_ARGS = dict(embed_dim=24, depth=2, num_heads=2, img_size=64, window_size=3, global_attn_indexes=(1,))
NO_CLS = dict(ARGS, class_token=False, global_pool='avg')
LAST_BLOCKS = dict(
    cls=(TimmViT, 'vit_tiny_patch16_224', ARGS, {}),
    size=(TimmViT, 'vit_tiny_patch16_224', ARGS, dict(pos_embed='size')),
    timm=(TimmViT, 'vit_tiny_patch16_224', ARGS, dict(pos_embed='timm')),
    norm=(TimmViT, 'vit_tiny_patch16_224', dict(ARGS, qk_norm=True, qkv_bias=False), {}),
    registers=(TimmViT, 'vit_small_patch14_reg4_dinov2', ARGS, {}),
    no_cls=(TimmViT, 'vit_tiny_patch16_224', NO_CLS, {}),
    no_cls_timm=(TimmViT, 'vit_tiny_patch16_224', dict(NO_CLS, patch_size=4), dict(pos_embed='timm')),
    dinov3=(TimmRoPEViT, 'vit_small_patch16_dinov3', DINOV3_ARGS, {}),
    dinov3_bias=(TimmRoPEViT, 'vit_small_patch16_dinov3_qkvb', DINOV3_ARGS, {}),
    dinov3_apart=(TimmRoPEViT, 'vit_small_patch16_dinov3_qkvb', dict(DINOV3_ARGS, qkv_fused=False), {}),
    sam=(TimmSAM, 'samvit_base_patch16', SAM_ARGS, {}),
    sam_norm=(TimmSAM, 'samvit_base_patch16', dict(SAM_ARGS, qk_norm=True), {}),
    sam_plain=(TimmSAM, 'samvit_base_patch16', dict(SAM_ARGS, use_rel_pos=False), {}),
)


@pytest.fixture(params=LAST_BLOCKS)
def last_block(request, monkeypatch):
    """A VFM without a parameter at its initial value, images, and what timm's own last attention has and returns.

    Taken from timm's forward: q and k (B, H, T, d) before rotary embeddings, v, the attention's output (B, T, C).
    """
    vfm_class, model, args, options = LAST_BLOCKS[request.param]
    vfm = vfm_class(model, model_args=args, random_weights=0, **options)
    torch.manual_seed(1)
    for parameter in vfm.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    images, found, attend = torch.rand(2, 3, 32, 48), {}, torch.nn.functional.scaled_dot_product_attention

    def sdpa(q, k, v, **others):
        found['v'] = v  # of the last call
        return attend(q, k, v, **others)

    def keep(name):
        return lambda module, inputs, output: found.__setitem__(name, output)

    attn = vfm.vit.blocks[-1].attn
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, 'scaled_dot_product_attention', sdpa)
        hooks = [
            module.register_forward_hook(keep(name))
            for name, module in dict(q=attn.q_norm, k=attn.k_norm, out=attn).items()
        ]
        vfm(images)
        for hook in hooks:
            hook.remove()
    heads = attn.num_heads  # SAM's heads and images lie in one dimension
    q, k, v = (x if x.ndim == 4 else x.unflatten(0, (-1, heads)) for x in (found[name] for name in 'qkv'))
    return vfm, images, q, k, v, found['out']


def as_features(heads, vfm, grid):
    """Return (B, H, T, d) as (B, H·d, h, w), patches alone."""
    patches = heads[:, :, getattr(vfm.vit, 'num_prefix_tokens', 0) :]
    return patches.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, grid)


def test_kinds_of_features_are_those_of_timms_own_last_attention(last_block):
    """For patches alone, whatever comes before them; the module is as it was."""
    vfm, images, q, k, v, _ = last_block
    grid, tokens = vfm.grid(32, 48), vfm(images)
    close = dict(atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(run_vfm(vfm, images, 'values'), as_features(v, vfm, grid), **close)
    torch.testing.assert_close(run_vfm(vfm, images, 'keys'), as_features(k, vfm, grid), **close)
    torch.testing.assert_close(run_vfm(vfm, images, 'q+k'), as_features(q + k, vfm, grid), **close)
    assert torch.equal(run_vfm(vfm, images), tokens) and torch.equal(vfm(images, 'tokens'), tokens)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vfm.modules())


def test_attention_gives_what_timms_last_attention_returns(last_block):
    """softmax(query·key + relative positions)·value, through the out-projection; of patches alone where CLS attends."""
    vfm, images, q, k, v, out = last_block
    if isinstance(vfm, TimmRoPEViT):
        with pytest.raises(UserError, match="TimmRoPEViT has no features of the kind 'attention', but 'tokens', 'val"):
            run_vfm(vfm, images, 'attention')
        return
    (h, w), attn = vfm.grid(32, 48), vfm.vit.blocks[-1].attn
    last = unpack_attention(run_vfm(vfm, images, 'attention'))
    close = dict(atol=2e-5, rtol=1e-4)
    for part, expected in ((last.query, q * q.shape[3] ** -0.5), (last.key, k), (last.value, v)):
        expected = as_features(expected, vfm, (h, w)).permute(0, 2, 3, 1)
        torch.testing.assert_close(part.flatten(3), expected, **close)
    logits = torch.einsum('byxhd,bvuhd->bhyxvu', last.query, last.key)
    for y in range(h):
        for x in range(w):
            logits[:, :, y, x] += last.rows[:, y, x, :, :, None] + last.columns[:, y, x, :, None]
    assert getattr(attn, 'use_rel_pos', False) == bool(last.rows.any()) == bool(last.columns.any())
    if getattr(vfm.vit, 'num_prefix_tokens', 0) == 0:
        attention = logits.flatten(4).softmax(4).unflatten(4, (h, w))
        mixed = attn.proj(torch.einsum('bhyxvu,bvuhd->byxhd', attention, last.value).flatten(3))
        torch.testing.assert_close(mixed, out.view_as(mixed), **close)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', ['registers', 'dinov3_bias', 'sam'])
def test_kinds_in_half_precision(name, dtype):
    vfm_class, model, args, options = LAST_BLOCKS[name]
    vfm = vfm_class(model, model_args=args, random_weights=0, **options)
    images = torch.rand(1, 3, 32, 48)
    full = {kind: vfm(images, kind) for kind in vfm.kinds}
    vfm.to(dtype)
    for kind, features in full.items():
        half = vfm(images, kind)
        assert half.dtype == dtype
        difference = (half.float() - features).norm() / features.norm()
        assert difference < (0.05 if kind == 'tokens' and name == 'sam' else 0.02)
    if 'attention' in full:
        assert unpack_attention(vfm(images, 'attention')).query.shape[3] == args['num_heads']


@pytest.mark.parametrize(
    'vfm_class, model, args, kinds',
    [
        (TimmViT, 'vit_tiny_patch16_224', dict(ARGS, depth=1), ['tokens']),
        (TimmViT, 'vit_tiny_patch16_224', dict(ARGS, block_fn=vision_transformer.ResPostBlock), ['tokens']),
        (TimmSAM, 'samvit_base_patch16', dict(SAM_ARGS, global_attn_indexes=()), ['tokens', 'values', 'keys', 'q+k']),
    ],
)
def test_last_blocks_that_have_fewer_kinds(vfm_class, model, args, kinds):
    """One block alone, a block of another order, a last block that attends within windows."""
    vfm = vfm_class(model, model_args=args, random_weights=0)
    assert vfm.kinds == tuple(kinds)
    with pytest.raises(UserError, match="the kind 'attention', but 'tokens'.*; name a VFM that has 'attention', such"):
        run_vfm(vfm, torch.rand(1, 3, 32, 32), 'attention')


def test_a_vfm_without_kinds_has_tokens():
    vfm = OneNumber()
    images = torch.rand(1, 3, 48, 72)
    assert torch.equal(run_vfm(vfm, images, 'tokens'), vfm(images))
    with pytest.raises(UserError, match="the VFM OneNumber has no features of the kind 'values', but 'tokens'; name"):
        run_vfm(vfm, images, 'values')


class Vfm(torch.nn.Module):
    multiple = (16, 8)

    def grid(self, height, width):
        return height // 16, width // 8


def test_a_vfm_has_a_multiple_and_a_grid(make):
    check_vfm(make(), 'toy')
    check_vfm(Vfm(), 'mine')
    for multiple in (0, 16.0, None, (16,), (16, 16, 16), (16, 0), (16, 8.0), (True, 8), '16', torch.tensor([16, 8])):
        vfm = Vfm()
        vfm.multiple = multiple
        fault = 'no `multiple`' if multiple is None else 'multiple = '
        with pytest.raises(UserError, match=f"the VFM 'mine' of class Vfm has {fault}.*`multiple = .16, 16.`"):
            check_vfm(vfm, 'mine')
    vfm = Vfm()
    vfm.grid = (4, 4)
    with pytest.raises(UserError, match='has no method `grid`; a VFM needs .*height, width. -> .h, w.'):
        check_vfm(vfm, 'mine')
    with pytest.raises(UserError, match='class Linear has no `multiple` and no method `grid`; .*`forward.images.'):
        check_vfm(torch.nn.Linear(1, 1), 'mine')


@MODELS.register_module()
class OneNumber(torch.nn.Module):
    """A VFM whose multiple is one number, for height and width; the features are means of cells."""

    def __init__(self, multiple=24, random_weights=None):
        super().__init__()
        self.multiple, self.weight = multiple, torch.nn.Parameter(torch.ones(1))

    def grid(self, height, width):
        return height // 24, width // 24

    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images, 24) * self.weight


def labels(method, multiple):
    """Return the labels of an image of 80×100 pixels under a method whose VFM has this multiple."""
    config = compose('voc21', method, None, 'toy', 'toy', data_root=MINI).model
    vfm = dict(type='OneNumber', multiple=multiple)
    model = MODELS.build(dict(config, vfm=vfm, words=[['cat'], ['sky']], window=64, stride=48))
    image = torch.randint(256, (3, 80, 100), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return model.test_step(dict(inputs=[image]))[0].pred_sem_seg.data


def test_one_number_is_the_multiple_of_both_sides(monkeypatch):
    """For a VFM of windows, for a VFM of the whole image, and in the suite of architectures."""
    assert torch.equal(labels('proxyclip', 24), labels('proxyclip', (24, 24)))
    sclip, grids = find_method('sclip'), []
    monkeypatch.setattr(sclip, 'roles', dict(far='image'))

    def attention(self, block):
        grids.extend(tuple(features.shape[2:]) for features in block.image_features['far'])
        return named_map('qq', block)

    monkeypatch.setattr(sclip, 'attention', attention)
    assert torch.equal(labels('sclip', 24), labels('sclip', (24, 24)))
    assert set(grids) == {(4, 5)}  # 80×100 pixels, padded to 96×120


def test_a_row_of_architectures_takes_one_number(tmp_path):
    part = tmp_path / 'one.py'
    part.write_text("vfm = dict(name='one', type='OneNumber', licence='MIT')")
    suite = load_suite('architectures')
    suite.window = 96
    cell = dict(backbone='toy', vfm=str(part), method='proxyclip', feedback=None)
    row = ArchitectureRuns(suite, 0, 'fp32', 'cpu', str(tmp_path)).row(cell)
    assert row['error'] is None and row['grid'] == [4, 4]


@pytest.mark.parametrize('grid', [4, (4,), (4.0, 4.0), None])
def test_a_grid_that_is_no_pair(grid):
    vfm = OneNumber()
    vfm.grid = lambda height, width: grid
    with pytest.raises(UserError, match='OneNumber: grid returned .*; it has to be a pair .h, w. of whole numbers'):
        run_vfm(vfm, torch.rand(1, 3, 96, 96))


def test_bad_input(make, tmp_path):
    with pytest.raises(UserError, match='does not divide into the patches of the VFM'):
        make()(torch.rand(1, 3, 30, 32))
    with pytest.raises(UserError, match="did you mean 'vit_base_patch8_224'"):
        TimmViT('vit_base_patch8_2244')
    with pytest.raises(UserError, match='does not exist'):
        TimmViT('vit_tiny_patch16_224', checkpoint=str(tmp_path / 'none.safetensors'))
    with pytest.raises(UserError, match='cannot be built.*depht'):
        TimmViT('vit_tiny_patch16_224', model_args=dict(depht=3))
    with pytest.raises(UserError, match='cannot be built'):
        TimmViT('vit_relpos_small_patch16_224')  # no dynamic_img_size
    with pytest.raises(UserError, match='no plain ViT with absolute position embeddings'):
        TimmViT('vit_tiny_patch16_224', model_args=dict(ARGS, pos_embed='none'))
    with pytest.raises(UserError, match="unknown pos_embed 'bicubic'"):
        TimmViT('vit_tiny_patch16_224', pos_embed='bicubic')
    with pytest.raises(UserError, match="unknown timm model 'vit_base_patch16_224'"):
        TimmSAM('vit_base_patch16_224')
    save_file(dict(wrong=torch.zeros(1)), tmp_path / 'wrong.safetensors')
    with pytest.raises(UserError, match='do not fit.*wrong'):
        TimmViT('vit_tiny_patch16_224', checkpoint=str(tmp_path / 'wrong.safetensors'), model_args=ARGS)
