import shutil
import weakref

import pytest
import torch
from mmseg.registry import MODELS
from safetensors.torch import load_file, save_file

from fsa_seg.config.compose import compose
from fsa_seg.evaluation.passes import prepare, run_pass
from fsa_seg.models import segmentor
from fsa_seg.models.kept import keep_only, kept_models, once, shared_models
from fsa_seg.models.segmentor import keep_models_of
from fsa_seg.system.paths import local_path


def config(method='proxyclip', **options):
    model = compose('voc21', method, 'fsa', 'toy', 'toy').model
    return dict(model, **dict(dict(words=[['sky', 'wall'], ['cat']], window=112, stride=64, prob_thd=0.0), **options))


def build(*configs):
    """Build a pass as a run does."""
    keep_models_of(configs)
    return MODELS.build(dict(type='SharedPass', members=configs)).members


@pytest.fixture
def loads(monkeypatch):
    """Which models are loaded, and how often."""
    names = []
    for name in ('_load_backbone', '_load_vfm'):
        load = getattr(segmentor, name)
        monkeypatch.setattr(
            segmentor, name, lambda *given, load=load, name=name: names.append(name[6:]) or load(*given)
        )
    return names


def test_models_stay_from_pass_to_pass(loads):
    """The digests stay too, and other words, windows and methods change no model."""
    with kept_models():
        (first,) = build(config())
        second, third = build(config('sclip'), config('proxyclip', words=[['cow'], ['tree']]))
        alone = MODELS.build(config())
        assert loads == ['backbone', 'vfm'] and second.visual is first.visual and alone.visual is first.visual
        assert third.vfms['proxy'] is first.vfms['proxy'] and third.weights == first.weights
    fresh = MODELS.build(config())
    assert loads == ['backbone', 'vfm'] * 2 and fresh.visual is not first.visual and fresh.weights == first.weights
    assert torch.equal(fresh.text_rows, alone.text_rows)


def test_files_that_change_while_a_model_loads_are_loaded_anew(tmp_path):
    """Such as by a download, or by hand."""
    file, key = tmp_path / 'weights.pt', [dict(checkpoint=str(tmp_path / 'weights.pt'))]
    with kept_models():
        once(shared_models(), key, lambda: file.write_text('one'))
        keep_only([key])
        assert not shared_models()
        once(shared_models(), key, lambda: 'model')
        with kept_models():  # a block in a block changes nothing
            keep_only([key])
        assert list(shared_models().values()) == ['model']
        keep_only([])
        assert not shared_models()
        once(shared_models(), key, lambda: 'model')
    assert not shared_models()
    with kept_models():
        assert not shared_models()


def test_what_a_pass_does_not_need_is_gone_before_it_loads(monkeypatch):
    """Another precision or another VFM is another model: each is changed where it lies."""
    load, alive = segmentor._load_backbone, []
    with kept_models():
        (first,) = build(config())
        visual, vfm = weakref.ref(first.visual), weakref.ref(first.vfms['proxy'])
        del first
        monkeypatch.setattr(
            segmentor, '_load_backbone', lambda *given: alive.append((visual() or vfm()) is not None) or load(*given)
        )
        (second,) = build(config(precision='bf16'))
        assert alive == [False] and second.visual.proj.dtype == torch.bfloat16
        build(config('sclip', precision='bf16'))
        assert alive == [False]


@pytest.mark.parametrize('part', ['backbone', 'vfm'])
def test_changed_weights_are_loaded_anew(tmp_path, loads, part):
    model = config()
    (vfm,) = [model['vfm']] if 'type' in model['vfm'] else model['vfm'].values()
    setting, prefix = (model['backbone'], 'local-dir:') if part == 'backbone' else (vfm, '')
    key = 'model' if part == 'backbone' else 'checkpoint'
    source = local_path(setting[key].removeprefix(prefix), 'weights')
    target = tmp_path / ('copy' if part == 'backbone' else 'copy.safetensors')
    (shutil.copytree if part == 'backbone' else shutil.copy)(source, target)
    setting[key] = f'{prefix}{target}'
    file = next(target.glob('*.safetensors')) if part == 'backbone' else target
    with kept_models():
        (first,) = build(model)
        tensors = load_file(file)
        tensors[next(key for key in tensors if key.endswith('weight'))] *= 1.01
        save_file(tensors, file)
        (second,) = build(model)
        assert sorted(loads) == sorted(['backbone', 'vfm', part])
        changed = {key for key in first.weights if first.weights[key] != second.weights[key]}
        assert changed == {'backbone' if part == 'backbone' else 'vfm.proxy'}


def test_results_of_passes_with_kept_models_are_the_same(tmp_path, small, loads):
    def cells(folder):
        options = dict(data_root=str(small), limit=1, runtime=dict(workers=0, work_dir=str(tmp_path / folder)))
        return [prepare(compose('voc21', 'proxyclip', feedback, 'toy', 'toy', **options)) for feedback in (None, 'fsa')]

    expected = run_pass(cells('together'))
    assert loads == ['backbone', 'vfm']
    with kept_models():
        found = [result for cell in cells('kept') for result in run_pass([cell])]
    assert loads == ['backbone', 'vfm'] * 2
    for a, b in zip(expected, found):
        assert (a['confusion'], a['weights'], a['hash']) == (b['confusion'], b['weights'], b['hash'])
