import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.transforms.functional import normalize

from fsa_seg.errors import UserError
from fsa_seg.parts import load_part, part_names
from fsa_seg.vfm import TimmViT

ARGS = dict(patch_size=8, embed_dim=24, depth=2, num_heads=2, img_size=32)


@pytest.fixture
def make(tmp_path):
    def make(model='vit_tiny_patch16_224', args=ARGS, **options):
        torch.manual_seed(0)
        vit = timm.create_model(model, num_classes=0, **args)
        save_file(vit.state_dict(), tmp_path / 'vfm.safetensors')
        return TimmViT(model, str(tmp_path / 'vfm.safetensors'), args, **options)
    return make


@pytest.mark.parametrize('pos_embed', ['published', 'timm'])
@pytest.mark.parametrize('model, args', [
    ('vit_tiny_patch16_224', ARGS),
    ('vit_small_patch14_reg4_dinov2', dict(embed_dim=24, depth=2, num_heads=2, patch_size=8, img_size=32)),
])  # yapf: disable
def test_trained_size_equals_timms_own_features(make, model, args, pos_embed):
    vfm = make(model, args, pos_embed=pos_embed)
    images = torch.rand(2, 3, 32, 32)
    tokens = vfm.vit.forward_features(normalize(images, vfm.mean, vfm.std))[:, vfm.vit.num_prefix_tokens:]
    torch.testing.assert_close(vfm(images).flatten(2).transpose(1, 2), tokens, atol=1e-5, rtol=1e-5)


def test_other_sizes(make):
    images = torch.rand(1, 3, 40, 64)
    published, timms = make(), make(pos_embed='timm')
    assert published.grid(40, 64) == (5, 8)
    assert published(images).shape == timms(images).shape == (1, 24, 5, 8)
    tokens = timms.vit.forward_features(normalize(images, timms.mean, timms.std))[:, 1:]
    torch.testing.assert_close(timms(images).flatten(2).transpose(1, 2), tokens)
    assert (published(images) - timms(images)).abs().max() > 1e-4  # the two resizes differ


def test_grid_keeps_rows_and_columns(make):
    """A change in the upper right corner changes that corner's feature most."""
    vfm = make()
    images = torch.rand(1, 3, 32, 48)
    changed = images.clone()
    changed[..., :8, -8:] = 1 - changed[..., :8, -8:]
    change = (vfm(images) - vfm(changed)).square().sum(1)[0]
    assert divmod(int(change.argmax()), change.shape[1]) == (0, 5)


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
    save_file(dict(wrong=torch.zeros(1)), tmp_path / 'wrong.safetensors')
    with pytest.raises(UserError, match='do not fit.*wrong'):
        TimmViT('vit_tiny_patch16_224', checkpoint=str(tmp_path / 'wrong.safetensors'), model_args=ARGS)


@pytest.mark.parametrize('name', part_names('vfm'))
def test_every_part_is_a_model_timm_knows(name):
    part = load_part('vfm', name)
    assert part.name == name
    assert timm.is_model(part.model.split('.')[0])
