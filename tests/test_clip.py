import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from fsa_seg.clip import check_tower, load_clip, resize_position_embedding, trunk, weights_digest
from fsa_seg.errors import UserError
from fsa_seg.parts import load_part, part_names

MODEL = dict(embed_dim=16, vision_cfg=dict(image_size=32, layers=2, width=32, head_width=16, patch_size=16),
             text_cfg=dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1))


def test_trunk_is_the_towers_own_up_to_the_last_block(tiny):
    visual, _ = tiny
    images = torch.randn(2, 3, 64, 64)
    tokens, grid = trunk(visual, images)
    assert grid == (4, 4)
    x = visual._embeds(images)
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    torch.testing.assert_close(tokens, x, atol=1e-5, rtol=1e-5)


def test_position_embedding_by_scale_factor():
    """Resized with scale factors (n + 0.1) / s, the prefix kept; not the same as to size."""
    torch.manual_seed(0)
    embedding = torch.randn(1 + 4 * 4, 8)
    resized = resize_position_embedding(embedding, (4, 4), (6, 9))
    assert resized.shape == (1 + 54, 8)
    assert torch.equal(resized[0], embedding[0])
    image = embedding[1:].T.reshape(1, 8, 4, 4)
    expected = torch.nn.functional.interpolate(image, scale_factor=(6.1 / 4, 9.1 / 4), mode='bicubic')
    torch.testing.assert_close(resized[1:].T.reshape(1, 8, 6, 9), expected)
    plain = resize_position_embedding(embedding, (4, 4), (6, 9), offset=0)
    assert (plain - resized).abs().max() > 1e-3
    assert resize_position_embedding(embedding, (4, 4), (4, 4)) is embedding


@pytest.mark.parametrize('size', [(60, 64), (64, 8)])
def test_window_of_no_whole_patches(tiny, size):
    with pytest.raises(UserError, match=f'{size[0]}×{size[1]} pixels does not divide'):
        trunk(tiny[0], torch.randn(1, 3, *size))


def test_unfit_tower_says_what_it_lacks():
    with pytest.raises(UserError, match='transformer.resblocks.*ln_post'):
        check_tower(torch.nn.Linear(2, 2))


def write_model(folder, state=None):
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    (folder / 'open_clip_config.json').write_text(json.dumps(dict(model_cfg=MODEL, preprocess_cfg={})))
    state = state or open_clip.CLIP(**json.loads(json.dumps(MODEL))).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / 'open_clip_model.safetensors')


def test_local_folder(tmp_path):
    write_model(tmp_path / 'clip')
    clip, tokenizer = load_clip(f'local-dir:{tmp_path}/clip')
    assert not clip.training and not any(p.requires_grad for p in clip.parameters())
    assert tokenizer(['a cat']).shape == (1, 16)
    digest = weights_digest(clip)
    assert digest == weights_digest(load_clip(f'local-dir:{tmp_path}/clip')[0])
    clip.visual.proj.data[0, 0] += 1
    assert digest != weights_digest(clip)


def test_weights_that_do_not_fit_name_the_keys(tmp_path):
    write_model(tmp_path / 'clip', dict(stranger=torch.zeros(2)))
    with pytest.raises(UserError, match='do not fit.*(stranger|positional_embedding)'):
        load_clip(f'local-dir:{tmp_path}/clip')


def test_missing_weights(tmp_path, monkeypatch):
    with pytest.raises(UserError, match='nowhere.*does not exist'):
        load_clip('local-dir:nowhere')
    with pytest.raises(UserError, match="did you mean 'ViT-B-16'"):
        load_clip('ViT-B-166', 'openai')
    with pytest.raises(UserError, match='its tags: .*openai'):
        load_clip('ViT-B-16-quickgelu', 'opnai')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(UserError, match='could not be loaded.*copy that cache, or give the path of a local file'):
        load_clip('ViT-B-16-quickgelu', 'openai', cache_dir=str(tmp_path))


def test_activation_of_the_weights():
    with pytest.raises(UserError, match="use 'ViT-B-16-quickgelu'"):
        load_clip('ViT-B-16', 'openai')


@pytest.mark.parametrize('name', [name for name in part_names('backbone') if 'pretrained' in load_part('backbone', name)])
def test_every_part_is_a_model_open_clip_knows(name):
    part = load_part('backbone', name)
    assert part.name == name
    assert part.pretrained in open_clip.list_pretrained_tags_by_model(part.model)
