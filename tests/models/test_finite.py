"""Numbers that are not finite end a run with an error that names them; they never become labels."""

import os
import shutil

import pytest
import torch
from mmseg.registry import MODELS
from safetensors.torch import load_file, save_file

from fsa_seg import Segmenter
from fsa_seg.config.compose import compose
from fsa_seg.errors import UserError
from fsa_seg.methods import base
from fsa_seg.models import segmentor, shared_pass
from fsa_seg.models.text import TextEncoder

from conftest import MINI

MODEL = os.path.join(MINI, 'models', 'toy_clip')


@pytest.fixture
def damaged(tmp_path):
    """Return a function that copies the toy CLIP with one value of one weight replaced, and returns its folder."""

    def copy(name, value):
        shutil.copytree(MODEL, tmp_path / 'clip')
        (path,) = (tmp_path / 'clip').glob('*.safetensors')
        state = load_file(path)
        state[name] = state[name].float()  # the file has half precision
        state[name].view(-1)[7] = value
        save_file(state, path)
        return f'local-dir:{tmp_path}/clip'

    return copy


def model(**options):
    return MODELS.build(dict(compose('voc21', 'sclip', None, 'toy', data_root=MINI).model, **options))


@pytest.mark.parametrize(
    'name, value, precision, message',
    [
        ('visual.proj', float('nan'), 'fp32', "1 of .* values of 'visual.proj' are no finite numbers"),
        ('token_embedding.weight', float('inf'), 'fp32', "values of 'token_embedding.weight' .* get it again"),
        (
            'visual.conv1.weight',
            1e6,
            'fp16',
            "values of 'conv1.weight' .* do not fit into fp16: use --precision fp32 or bf16",
        ),
    ],
)
def test_weights(damaged, name, value, precision, message):
    with pytest.raises(UserError, match=message):
        model(backbone=dict(model=damaged(name, value)), precision=precision)


def test_weights_of_a_vfm(tmp_path):
    state = load_file(os.path.join(MINI, 'models', 'toy_vfm', 'model.safetensors'))
    state['norm.weight'][0] = float('nan')
    save_file(state, tmp_path / 'vfm.safetensors')
    config = compose('voc21', 'proxyclip', None, 'toy', 'toy', data_root=MINI).model
    with pytest.raises(UserError, match="the VFM 'vit_tiny.*norm.weight"):
        MODELS.build(dict(config, vfm=dict(config.vfm.proxy, checkpoint=str(tmp_path / 'vfm.safetensors'))))


def test_text_embeddings(tmp_path):
    """A tower that gives NaN is an error; a kept embedding that is none is made again."""
    clip, tokenizer, _ = segmentor._load_backbone(compose('voc21', 'sclip', backbone='toy').model.backbone, 'fp32')

    def encode(*words):
        return TextEncoder(clip, tokenizer, str(tmp_path)).encode([words]).rows

    right = encode('cat')
    (path,) = tmp_path.rglob('*.safetensors')
    for wrong in (torch.full_like(right[0], float('nan')), right.repeat(2, 1), 2 * right[0]):
        save_file(dict(row=wrong), path)
        assert torch.equal(encode('cat'), right)
    encoder = TextEncoder(clip, tokenizer, str(tmp_path / 'other'))
    clip.text_projection.data[0, 0] = float('nan')
    with pytest.raises(UserError, match="the text embedding of 'fox' is no finite unit vector"):
        encoder.encode([['fox'], ['hen']])


def spoil(monkeypatch, stage, calls):
    """Have one stage give a NaN in its third window."""

    def spoiled(values):
        calls.append(1)
        if len(calls) == 3:
            values[0, 0, 5] = float('nan')
        return values

    trunk, features = segmentor.trunk_and_inner, segmentor.TrainingFreeSegmentor.features
    cosines = base.WindowCosines.cosines
    if stage == 0:
        monkeypatch.setattr(segmentor, 'trunk_and_inner', lambda *a: (lambda x, *more: (spoiled(x), *more))(*trunk(*a)))
    elif stage == 1:
        monkeypatch.setattr(
            segmentor.TrainingFreeSegmentor,
            'features',
            lambda self, *given: {role: spoiled(values) for role, values in features(self, *given).items()},
        )
    else:
        monkeypatch.setattr(base.WindowCosines, 'cosines', lambda self, attention: spoiled(cosines(self, attention)))


@pytest.mark.parametrize('stage', [0, 1, 2])
def test_the_error_names_image_stage_and_setting(run_tool, monkeypatch, tmp_path, stage):
    """Images that were counted before stay counted."""
    spoil(monkeypatch, stage, [])
    command = ('test', 'voc21', '--mini', '--method', 'proxyclip', '--no-fsa', '--limit', 4)
    status, printed = run_tool(*command)
    assert status == 1 and 'Traceback' not in printed
    assert (
        f'{shared_pass.FINITE_STAGES[stage]} under proxyclip, fp32 gave numbers that are not finite'.lower()
        in printed.lower()
    ), printed[-600:]
    assert '2007_' in printed.splitlines()[-1] and not list(tmp_path.rglob('results/*.json'))
    monkeypatch.undo()
    status, printed = run_tool(*command)
    assert status == 0 and 'are counted already' in printed


def test_a_single_picture(monkeypatch):
    spoil(monkeypatch, 0, [1, 1])
    segmenter = Segmenter('toy', 'sclip', vfm='toy')
    image = os.path.join(MINI, 'VOCdevkit', 'VOC2012', 'JPEGImages', '2007_000033.jpg')
    with pytest.raises(UserError, match="the image: CLIP's trunk under sclip . FSA, fp32"):
        segmenter.segment(image, ['cat', 'grass'])
    assert segmenter.segment(image, ['cat', 'grass']).labels.size
    assert (
        shared_pass.finite_field('pred_sem_seg') == 'finite'
        and shared_pass.finite_field(shared_pass.label_field(3)) == 'finite_3'
    )
