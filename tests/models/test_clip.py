import importlib.util
import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from fsa_seg.errors import UserError
from fsa_seg.models.clip import check_tower, load_clip, resize_position_embedding, trunk, weights_digest

MODEL = dict(
    embed_dim=16,
    vision_cfg=dict(image_size=32, layers=2, width=32, head_width=16, patch_size=16),
    text_cfg=dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1),
)


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
    """The resize has scale factors (n + 0.1) / s, keeps the prefix, and differs from a resize to size."""
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
    with pytest.raises(UserError, match="tag of ViT-B-16-quickgelu 'opnai' .did you mean 'openai'"):
        load_clip('ViT-B-16-quickgelu', 'opnai')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(UserError, match='could not be loaded.*copy that cache, or give the path of a local file'):
        load_clip('ViT-B-16-quickgelu', 'openai', cache_dir=str(tmp_path))


@pytest.mark.parametrize(
    'model, tag, fitting',
    [
        ('ViT-B-16', 'openai', 'ViT-B-16-quickgelu'),
        ('ViT-B-16', 'dfn2b', 'ViT-B-16-quickgelu'),
        ('ViT-L-14', 'metaclip_fullcc', 'ViT-L-14-quickgelu'),
        ('ViT-L-14-336', 'openai', 'ViT-L-14-336-quickgelu'),
        ('ViT-B-16-quickgelu', 'laion2b_s34b_b88k', 'ViT-B-16'),
        ('ViT-H-14-quickgelu', 'laion2b_s32b_b79k', 'ViT-H-14'),
    ],
)
def test_activation_of_a_tags_weights(model, tag, fitting):
    with pytest.raises(UserError, match=f'differ in their activation: the tag {tag!r} says .* Use {fitting!r}'):
        load_clip(model, tag)


@pytest.fixture
def architecture():
    """Register two small architectures with open_clip, which differ in their activation; yield the first's name."""
    for name, quick in (('tiny', False), ('tiny-quickgelu', True)):
        open_clip.factory._MODEL_CONFIGS[name] = dict(MODEL, quick_gelu=quick)
    yield 'tiny'
    for name in ('tiny', 'tiny-quickgelu'):
        del open_clip.factory._MODEL_CONFIGS[name]


def state(**change):
    torch.manual_seed(1)
    return open_clip.CLIP(**json.loads(json.dumps({**MODEL, **change}))).state_dict()


def test_a_local_file_whose_activation_is_not_known(architecture, tmp_path):
    torch.save(state(), tmp_path / 'clip.pt')
    path = str(tmp_path / 'clip.pt')
    with pytest.raises(UserError, match='does not say which activation.*set quick_gelu=True or False'):
        load_clip('tiny', checkpoint=path)
    with pytest.raises(UserError, match="`quick_gelu` of the config says QuickGELU, .* Use 'tiny-quickgelu'"):
        load_clip('tiny', checkpoint=path, quick_gelu=True)
    clip, _ = load_clip('tiny-quickgelu', checkpoint=path, quick_gelu=True)
    assert torch.equal(clip.visual.proj, state()['visual.proj'])


def test_a_local_file_beside_its_config(architecture, tmp_path):
    """As in a folder of the hub: the config says the activation."""
    write_model(tmp_path / 'clip', state())
    (tmp_path / 'clip' / 'open_clip_config.json').write_text(json.dumps(dict(model_cfg=dict(MODEL, quick_gelu=True))))
    path = str(tmp_path / 'clip' / 'open_clip_model.safetensors')
    load_clip('tiny-quickgelu', checkpoint=path)
    with pytest.raises(UserError, match='open_clip_config.json says QuickGELU, the architecture has GELU'):
        load_clip('tiny', checkpoint=path)


def test_the_normalisation_of_a_local_file(architecture, tmp_path):
    """The normalisation is that of the file's config, or of the part, or else OpenAI's."""
    write_model(tmp_path / 'clip', state())
    path = str(tmp_path / 'clip' / 'open_clip_model.safetensors')
    (tmp_path / 'clip' / 'open_clip_config.json').write_text(
        json.dumps(dict(model_cfg=MODEL, preprocess_cfg=dict(mean=[0.5] * 3, std=[0.25] * 3)))
    )
    for options, mean in ((dict(checkpoint=path), 0.5), (dict(checkpoint=path, mean=[0.4] * 3), 0.4)):
        config = load_clip('tiny', **options)[0].visual.preprocess_cfg
        assert config['mean'] == (mean,) * 3 and config['std'] == (0.25,) * 3
    (tmp_path / 'clip' / 'open_clip_config.json').write_text('{"model_cfg": ')
    with pytest.raises(UserError, match='open_clip_config.json is no config of open_clip'):
        load_clip('tiny', checkpoint=path)


def test_a_damaged_local_file(architecture, tmp_path):
    torch.save(state(), tmp_path / 'cut.pt')
    (tmp_path / 'cut.pt').write_bytes((tmp_path / 'cut.pt').read_bytes()[:5000])
    with pytest.raises(UserError, match='the file .*cut.pt cannot be read .* it may be damaged'):
        load_clip('tiny', checkpoint=str(tmp_path / 'cut.pt'), quick_gelu=False)


class Archive(torch.nn.Module):
    """As OpenAI's archives: a module with CLIP's weights under CLIP's names, whose code has the activation."""

    def __init__(self, quick):
        super().__init__()
        clip = open_clip.CLIP(**json.loads(json.dumps(MODEL)))
        clip.load_state_dict(state())
        for name, parameter in list(clip.state_dict().items()):
            *path, last = name.split('.')
            module = self
            for step in path:
                if step not in module._modules:
                    module.add_module(step, torch.nn.Module())
                module = module._modules[step]
            module.register_buffer(last, parameter)
        self.register_buffer('input_resolution', torch.tensor(32))
        self.quick = quick

    def forward(self, x: torch.Tensor):
        return x * torch.sigmoid(1.702 * x) if self.quick else torch.nn.functional.gelu(x)


@pytest.mark.parametrize('quick', [True, False])
@pytest.mark.filterwarnings('ignore:.torch.jit')
def test_a_torchscript_archive_says_its_activation(architecture, tmp_path, quick):
    path = str(tmp_path / 'ViT-tiny.pt')
    torch.jit.trace(Archive(quick), torch.randn(2)).save(path)
    right, wrong = ('tiny-quickgelu', 'tiny') if quick else ('tiny', 'tiny-quickgelu')
    clip, _ = load_clip(right, checkpoint=path)
    assert torch.equal(clip.visual.proj, state()['visual.proj'])
    with pytest.raises(UserError, match=f'the code in .*ViT-tiny.pt says .*Use {right!r}'):
        load_clip(wrong, checkpoint=path)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(embed_dim=24), r'size mismatch for (visual.proj|text_projection).*24'),
        (
            dict(vision_cfg=dict(MODEL['vision_cfg'], image_size=48)),
            r'size mismatch for visual.positional_embedding: \(10, 32\)',
        ),
        (dict(vision_cfg=dict(MODEL['vision_cfg'], layers=3)), r'Unexpected key.*visual.transformer.resblocks.2'),
        (dict(vision_cfg=dict(MODEL['vision_cfg'], layers=1)), r'Missing key.*visual.transformer.resblocks.1'),
    ],
)
def test_a_local_file_of_another_architecture(architecture, tmp_path, change, message):
    torch.save(state(**change), tmp_path / 'other.pt')
    with pytest.raises(UserError, match='do not fit CLIP .tiny.: .*' + message):
        load_clip('tiny', checkpoint=str(tmp_path / 'other.pt'), quick_gelu=False)


def test_where_weights_are_named(tmp_path):
    with pytest.raises(UserError, match='a local file is named by `checkpoint`'):
        load_clip('ViT-B-16', 'weights/clip.pt')
    with pytest.raises(UserError, match='name its weights'):
        load_clip('ViT-B-16')
    with pytest.raises(UserError, match="checkpoint of the backbone ViT-B-16: 'gone.pt' does not exist"):
        load_clip('ViT-B-16', checkpoint='gone.pt')
    write_model(tmp_path / 'clip')
    with pytest.raises(UserError, match='leave out pretrained'):
        load_clip(f'local-dir:{tmp_path}/clip', 'openai')


def test_a_tags_normalisation_is_that_of_its_local_file_too():
    with torch.device('meta'):
        visual = load_clip('ViT-L-14', 'laion2b_s32b_b82k', random_weights=0)[0].visual
    assert visual.preprocess_cfg['mean'] == (0.5, 0.5, 0.5) == visual.preprocess_cfg['std']


def test_random_weights_are_those_of_their_seed(architecture):
    seed_3, again, seed_4 = (weights_digest(load_clip('tiny', random_weights=seed)[0]) for seed in (3, 3, 4))
    assert seed_3 == again != seed_4


@pytest.mark.parametrize(
    'model, missing',
    [
        ('RN50', 'transformer.resblocks'),
        ('coca_ViT-B-32', 'it pools by attention'),
        ('ViT-B-16-SigLIP', 'class_embedding'),
        ('convnext_base', 'transformer.resblocks'),
    ],
)
def test_towers_that_the_methods_cannot_run_on(model, missing):
    with pytest.raises(UserError, match=f'lacks .*{missing}'):
        load_clip(model, random_weights=0)


@pytest.mark.skipif(importlib.util.find_spec('transformers') is not None, reason='transformers is installed')
def test_a_text_tower_of_a_library_that_is_not_here():
    with pytest.raises(UserError, match="CLIP 'xlm-roberta-base-ViT-B-32' cannot be built: .*transformers"):
        load_clip('xlm-roberta-base-ViT-B-32', random_weights=0)


def test_a_folders_normalisation_can_be_replaced():
    folder = 'local-dir:data/mini/models/toy_clip'
    own = load_clip(folder)[0].visual.preprocess_cfg
    for seed in (None, 0):
        changed = load_clip(folder, mean=[0.2, 0.3, 0.4], random_weights=seed)[0].visual.preprocess_cfg
        assert changed['mean'] == (0.2, 0.3, 0.4) and list(changed['std']) == list(own['std'])
