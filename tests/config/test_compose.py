import contextlib
import functools
import itertools
import json
import os
import re
import shutil

import pytest
from mmseg.registry import MODELS

from fsa_seg.config import components
from fsa_seg.config.components import class_names, component_names, load_component, load_file, protocol_settings
from fsa_seg.config.compose import check_config, compose, is_complete, merge_options, set_runtime
from fsa_seg.config.fingerprint import cell_hash, fingerprint
from fsa_seg.config.saved import to_json
from fsa_seg.config.suites import suite_cells
from fsa_seg.errors import UserError
from fsa_seg.evaluation.results import cell_id
from fsa_seg.methods import find_method, make_method
from fsa_seg.models import text as class_texts
from fsa_seg.system import paths
from fsa_seg.system.paths import CONFIGS

TOY = dict(backbone='toy', vfm='toy', data_root='data/mini')
PUBLISHED = {  # protocol, data set: short, window, stride, prob_thd, logit_scale, area_thd
    ('proxyclip', 'voc21'): (336, 336, 112, 0.2, 40, None),
    ('proxyclip', 'context60'): (336, 336, 112, 0.15, 40, None),
    ('proxyclip', 'coco_object'): (336, 336, 112, 0.25, 40, None),
    ('proxyclip', 'voc20'): (336, 336, 112, 0, 40, None),
    ('proxyclip', 'cityscapes'): (448, 224, 112, 0, 40, None),
    ('proxyclip', 'ade20k'): (448, 336, 112, 0, 40, None),
    ('proxyclip', 'context59'): (336, 336, 112, 0, 40, None),
    ('proxyclip', 'coco_stuff164k'): (336, 336, 112, 0, 40, None),
    ('fsa', 'ade20k'): (448, 336, 112, 0, 40, None),
    ('fsa', 'voc21'): (336, 336, 112, 0.2, 40, None),
    ('fsa', 'context60'): (336, 336, 112, 0.14, 40, None),
    ('fsa', 'coco_object'): (336, 336, 112, 0.3, 40, None),
    ('fsa', 'cityscapes'): (448, 224, 80, 0, 40, None),
    ('sclip', 'voc21'): (336, 224, 112, 0.1, 65, 0.1),
    ('sclip', 'context60'): (336, 224, 112, 0.1, 50, None),
    ('sclip', 'coco_object'): (336, 224, 112, 0.1, 50, None),
    ('sclip', 'voc20'): (336, 224, 112, 0, 40, None),
    ('sclip', 'context59'): (336, 224, 112, 0, 40, None),
    ('sclip', 'ade20k'): (336, 224, 112, 0, 40, None),
    ('sclip', 'coco_stuff164k'): (448, 224, 112, 0, 40, None),
    ('sclip', 'cityscapes'): (560, 224, 112, 0, 40, None),
    ('clearclip', 'voc21'): (448, 448, 224, 0.5, 50, None),
    ('clearclip', 'context60'): (448, 448, 224, 0.15, 50, None),
    ('clearclip', 'coco_object'): (448, 448, 224, 0.4, 50, None),
    ('clearclip', 'voc20'): (448, 448, 224, 0, 50, None),
    ('clearclip', 'context59'): (448, 448, 224, 0, 50, None),
    ('clearclip', 'coco_stuff164k'): (448, 448, 224, 0, 50, None),
    ('clearclip', 'ade20k'): (448, 448, 224, 0, 50, None),
    ('clearclip', 'cityscapes'): (448, 224, 224, 0, 50, None),
}


@pytest.mark.parametrize('protocol, dataset', PUBLISHED)
def test_published_settings(protocol, dataset):
    settings = protocol_settings(load_component('protocol', protocol), dataset)
    assert (
        tuple(settings[key] for key in ('short', 'window', 'stride', 'prob_thd', 'logit_scale', 'area_thd'))
        == PUBLISHED[protocol, dataset]
    )


def test_every_combination_composes():
    datasets = [
        name for name in component_names('dataset') if 'classes' not in load_component('dataset', name)
    ]  # other data sets need their files
    for dataset, method, feedback in itertools.product(datasets, component_names('method'), (None, 'fsa')):
        config = compose(dataset, method, feedback, **TOY)
        assert is_complete(config)
        assert (config.model.feedback is not None) == (feedback == 'fsa')
        assert (list(config.model.vfm) if config.model.vfm else []) == list(load_component('method', method).roles)


@pytest.mark.parametrize(
    'method, feedback, protocol',
    [
        ('proxyclip', None, 'proxyclip'),
        ('proxyclip', 'fsa', 'fsa'),
        ('sclip', 'fsa', 'sclip'),
        ('clearclip', 'fsa', 'clearclip'),
        ('maskclip', None, 'clearclip'),
        ('clip', 'fsa', 'clearclip'),
        ('naclip', 'fsa', 'naclip'),
        ('pearl', 'fsa', 'pearl'),
        ('resclip', 'sfr', 'resclip'),
        ('scclip', None, 'scclip'),
        ('sfp', None, 'sfp'),
        ('gem', None, 'clearclip'),
    ],
)
def test_own_protocol(method, feedback, protocol):
    assert compose('voc21', method, feedback, **TOY).cell.protocol == protocol


def test_lambda_is_the_feedbacks_or_the_vfms_or_the_backbones(tmp_path):
    files = dict(
        backbone="backbone = dict(name='b', model='ViT-B-16', fsa=dict(lam=2.3))",
        vfm="vfm = dict(name='v', type='TimmViT', model='vit_base_patch16_224.mae', fsa=dict(lam=4.5))",
        feedback="feedback = dict(name='f', type='FSA', lam=1.0, p=0.45)",
    )
    for name, text in files.items():
        (tmp_path / f'{name}.py').write_text(text)
    path = {name: str(tmp_path / f'{name}.py') for name in files}
    assert compose('voc21', 'sclip', 'fsa', path['backbone']).model.feedback.lam == 2.3
    assert compose('voc21', 'proxyclip', 'fsa', path['backbone'], path['vfm']).model.feedback.lam == 4.5
    assert compose('voc21', 'proxyclip', path['feedback'], path['backbone'], path['vfm']).model.feedback.lam == 1.0
    assert 'lam' not in compose('voc21', 'sclip', 'fsa', 'toy').model.feedback


def test_a_protocol_sets_the_methods_settings():
    """On its data sets, for its method alone, and below what is given with the method's name."""
    alpha = {name: compose(name, 'pearl', None, **TOY).model.method.alpha for name in ('voc21', 'cityscapes', 'ade20k')}
    assert alpha == dict(voc21=0.08, cityscapes=0.3, ade20k=0.3)
    given = compose('ade20k', dict(type='pearl', alpha=0.2), None, **TOY)
    assert given.model.method.alpha == 0.2 and given.cell.method == 'pearl alpha=0.2'
    assert compose('ade20k', 'pearl', None, **TOY).cell.method == 'pearl'
    assert not compose('ade20k', 'sclip', None, protocol='pearl', **TOY).model.method
    host = compose('cityscapes', dict(type='resclip', host='clearclip'), None, **TOY).model.method
    assert (host.host, host.tau, host.lam) == ('clearclip', 2.0, 0.2)
    assert compose('voc21', 'pearl', None, protocol='proxyclip', **TOY).model.method.alpha == 0.08


def test_a_protocol_sets_the_feedbacks_settings(tmp_path):
    """SFR's, alone and before FSA, which keeps its own; λ of a backbone is FSA's alone."""
    (tmp_path / 'b.py').write_text("backbone = dict(name='b', model='ViT-B-16', fsa=dict(lam=2.3))")
    backbone = str(tmp_path / 'b.py')
    sfr = dict(tau=2.2, lam=0.7, threshold=0.5)
    assert compose('voc21', 'resclip', 'sfr', backbone).model.feedback == dict(type='SFR', **sfr)
    both = compose('voc21', 'resclip', 'sfr+fsa', backbone).model.feedback
    assert both == dict(type='SFRAndFSA', lam=2.3, p=0.45, **{f'sfr_{key}': value for key, value in sfr.items()})
    assert compose('voc21', 'resclip', 'sfr', backbone, protocol='proxyclip').model.feedback == dict(type='SFR')
    given = compose('voc21', 'resclip', dict(type='SFR', tau=1.9), **TOY)
    assert given.model.feedback == dict(sfr, type='SFR', tau=1.9) and given.cell.feedback == 'sfr tau=1.9'
    assert 'tau' not in compose('voc21', 'resclip', 'fsa', **TOY).model.feedback


@pytest.mark.parametrize(
    'settings, message',
    [
        ('method=dict(pearl=dict(alfa=1))', "unknown key 'alfa' in method pearl"),
        ('method=dict(perl=dict(alpha=1))', "unknown method in protocol .* 'perl' .did you mean 'pearl'"),
        ('method=dict(pearl=dict(alpha=-1))', 'alpha is -1'),
        ("method=['pearl']", 'method'),
        ('method=dict(spelled_out=dict(attention="qq"))', "unknown method in protocol .* 'spelled_out'"),
        ('feedback=dict(SFR=dict(tau=-1))', 'SFR: tau is -1'),
        ('feedback=dict(SFR=dict(tou=1))', "unknown key 'tou'"),
        ('feedback=dict(SFRR=dict(tau=1))', "unknown feedback in protocol .* 'SFRR' .did you mean 'SFR'"),
    ],
)
def test_a_protocol_with_wrong_settings_of_parts(tmp_path, settings, message):
    default = 'logit_scale=40, short=336, window=336, stride=112, prob_thd=0.0, area_thd=None'
    text = f"protocol = dict(name='p', default=dict({default}, {settings}), datasets=dict())"
    (tmp_path / 'p.py').write_text(text)
    with pytest.raises(UserError, match=message):
        compose('voc21', 'pearl', None, protocol=str(tmp_path / 'p.py'), **TOY)


def test_settings_that_are_given_stay(tmp_path):
    """Of a method that is built, and of a user's file under a shipped name; a data set replaces single settings."""
    assert compose('ade20k', make_method(dict(type='pearl', alpha=0.5)), None, **TOY).model.method.alpha == 0.5
    assert compose('ade20k', find_method('pearl')(alpha=0.08, steps=7), None, **TOY).model.method.steps == 7
    (tmp_path / 'pearl.py').write_text(
        'from fsa_seg.methods.base import Method\nfrom fsa_seg.ops.attention import named_map\n\n\n'
        'class Other(Method):\n    """Another method."""\n\n    title = "Other"\n\n'
        '    def __init__(self, alpha=1.0):\n        self.alpha = alpha\n\n'
        '    def attention(self, block):\n        return named_map("qq", block)\n'
    )
    other = compose('ade20k', str(tmp_path / 'pearl.py'), None, protocol='pearl', **TOY)
    assert other.model.method == dict(alpha=1.0)
    default = 'logit_scale=40, short=336, window=336, stride=112, prob_thd=0.0, area_thd=None'
    parts = 'method=dict(pearl=dict(steps=7)), feedback=dict(FSA=dict(p=0.3), SFR=dict(tau=1.5))'
    (tmp_path / 'p.py').write_text(
        f"protocol = dict(name='p', default=dict({default}, {parts}), "
        'datasets=dict(ade20k=dict(method=dict(pearl=dict(alpha=0.2)), feedback=dict(SFR=dict(lam=0.5)))))'
    )
    both = compose('ade20k', 'pearl', dict(type='SFRAndFSA', lam=1.0), protocol=str(tmp_path / 'p.py'), **TOY).model
    assert both.method == dict(alpha=0.2, steps=7)
    expected = dict(type='SFRAndFSA', lam=1.0, p=0.45, sfr_tau=1.5, sfr_lam=0.5)  # p is the component's
    assert both.feedback == expected
    assert compose('voc21', 'proxyclip', 'sfr', **TOY).cell.protocol == 'proxyclip'
    assert compose('voc21', 'proxyclip', 'sfr+fsa', **TOY).cell.protocol == 'fsa'
    assert compose('voc21', 'sclip', 'none', **TOY).cell.feedback is None


def test_a_window_with_too_few_patches_is_found_before_a_run():
    for method, feedback, message in (
        ('scclip', None, 'window is 64 pixels or 16 patches, and SCCLIP needs at least 31'),
        ('clearclip', 'sfr', 'window is 16 pixels or 1 patches, and SFR needs at least 2'),
    ):
        config = compose('voc21', method, feedback, **TOY)
        merge_options(config, {'model.window': int(message.split()[2]), 'model.stride': 16})
        with pytest.raises(UserError, match=message):
            MODELS.build(config.model)


def test_a_data_set_that_no_protocol_knows(tmp_path):
    file = tmp_path / 'custom.py'
    file.write_text(
        "dataset = dict(name='custom', type='BaseSegDataset', data_root='custom', metainfo=dict(classes=['a', "
        "'b'], palette=[[0, 0, 0], [255, 0, 0]]), data_prefix=dict(img_path='i', seg_map_path='l'))"
    )
    config = compose(str(file), 'sclip', **TOY)
    assert config.model.words == [['a'], ['b']]
    assert (config.model.window, config.model.stride) == (224, 112)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(dataset='voc12'), "unknown dataset 'voc12' .did you mean 'voc21'"),
        (dict(method='sclap'), "unknown method 'sclap' .did you mean 'sclip'"),
        (dict(backbone='clip_vit-b17'), "unknown backbone .* 'clip_vit-b16'"),
        (dict(vfm='dino_vitb8'), "unknown vfm .* 'dino_vit-b8'"),
        (dict(protocol='sclap'), "unknown protocol .* 'sclip'"),
        (dict(feedback='fas'), "unknown feedback .* 'fsa'"),
        (dict(precision='fp61'), "unknown precision .* 'fp16'"),
        (dict(limit=0), 'limit is 0; it has to be a whole number, 1 or more'),
        (dict(dataset='nowhere/custom.py'), 'does not exist'),
        (dict(dataset='nowhere/result.json'), 'does not exist'),
        (dict(words='nowhere.txt'), "'nowhere.txt' cannot be read"),
        (dict(words='nowhere/words'), "'nowhere/words' cannot be read"),
        (dict(words='clearclop'), "unknown words 'clearclop' .did you mean 'clearclip'.*; or give a file of words"),
        (dict(words='name'), "unknown words 'name' .did you mean 'names'"),
    ],
)
def test_bad_choices(arguments, message):
    with pytest.raises(UserError, match=message):
        compose(**{**dict(dataset='voc21', method='proxyclip'), **TOY, **arguments})


@pytest.mark.parametrize(
    'kind, text, message',
    [
        (
            'dataset',
            "dataset = dict(name='x', type='PascalVOCDataset', data_root='', ann_flie='a', data_prefix={})",
            "unknown key 'ann_flie' in dataset .did you mean 'ann_file'",
        ),
        ('dataset', 'datasett = dict()', "no dict 'dataset'"),
        ('dataset', 'dataset = dict(', 'cannot be read: .*SyntaxError|cannot be read'),
        ('method', "method = dict(name='x', segmentor=dict(type='SCLIP'), protocol='sclip')", 'it defines none'),
        ('backbone', "backbone = dict(name='x', model='ViT-B-16', pretrainde='openai')", "did you mean 'pretrained'"),
        ('vfm', "vfm = dict(name='x', type='TimmViT', model='m', random_weights=0)", 'use --random-weights SEED'),
        ('vfm', "vfm = dict(name='x', type='TimmViT', model='m', chekpoint='f')", "did you mean 'checkpoint'"),
        ('feedback', "feedback = dict(name='x', type='FSA', lamb=1)", "did you mean 'lam'"),
        ('protocol', "protocol = dict(name='x', default=dict(windw=3), datasets={})", "did you mean 'window'"),
        ('protocol', "protocol = dict(name='x', default=dict(window=3), datasets={})", 'has no logit_scale, short'),
    ],
)
def test_misspelt_keys_in_component_files(tmp_path, kind, text, message):
    (tmp_path / 'component.py').write_text(text)
    arguments = dict(dict(dataset='voc21', method='proxyclip'), **TOY)
    arguments[kind] = str(tmp_path / 'component.py')
    with pytest.raises(UserError, match=message):
        compose(**arguments)


def test_options():
    config = compose('voc21', 'sclip', **TOY)
    merge_options(config, {'model.stride': 56})
    assert config.model.stride == 56 and config.cell.changed == ['model.stride=56']
    # a changed option, a default, and an option that changes no number
    merge_options(config, {'model.stride': 28, 'model.feedback.p': 0.45, 'log_interval': 3})
    assert config.cell.changed == ['model.stride=28']
    for options, message in (
        ({'model.strid': 56}, "did you mean 'stride'"),
        ({'modle.stride': 5}, "no 'modle'"),
        ({'model.feedback.pp': 1}, "unknown key 'pp'"),
        ({'wrk_dir': 'x'}, "'work_dir'"),
    ):
        with pytest.raises(UserError, match=message):
            merge_options(compose('voc21', 'sclip', **TOY), options)


def test_words_of_a_wrong_number_of_classes():
    config = compose('voc21', 'sclip', **TOY)
    config.model.words = config.model.words[:-1]
    with pytest.raises(UserError, match='words for 20 classes, but the data set has 21'):
        check_config(config)


def test_words_by_name():
    """Those of another protocol, and the plain class names; the settings stay those of the cell's protocol."""
    plain, other, names = (compose('voc21', 'proxyclip', **TOY, words=words) for words in (None, 'sclip', 'names'))
    assert [config.cell.words for config in (plain, other, names)] == ['fsa', 'sclip', 'names']
    assert {config.cell.protocol for config in (plain, other, names)} == {'fsa'}
    assert other.model.words == compose('voc21', 'sclip', **TOY).model.words != plain.model.words
    assert names.model.words == [[name] for name in class_names(names.test_dataloader.dataset)]
    entries = [{entry.key: entry for entry in fingerprint(config)} for config in (plain, other, names)]
    for changed in entries[1:]:
        assert [key for key in changed if changed[key] != entries[0][key]] == ['model.words']
    named = compose('voc21', 'proxyclip', **TOY, words='fsa')
    assert dict(named.cell) == dict(plain.cell) and cell_hash(fingerprint(named)) == cell_hash(fingerprint(plain))
    same = compose('voc21', 'proxyclip', **TOY, words='proxyclip')
    assert same.cell.words == 'proxyclip' and cell_hash(fingerprint(same)) == cell_hash(fingerprint(plain))
    assert 'fsa_proxyclip' in cell_id(same.cell, 'a') and 'fsa_fsa' not in cell_id(named.cell, 'a')


def test_words_in_files_beside_names(tmp_path, monkeypatch):
    """A suffix or a folder makes a file; a name without either is a protocol's first, then a file's."""
    monkeypatch.chdir(tmp_path)
    lines = '\n'.join(f'thing {i}' for i in range(21))
    for name in ('sclip.txt', 'sclip', 'names', 'mine'):
        (tmp_path / name).write_text(lines)
    for words in ('sclip.txt', './sclip', 'mine', str(tmp_path / 'names')):
        config = compose('voc21', 'proxyclip', **TOY, words=words)
        assert config.model.words[3] == ['thing 3'] and re.fullmatch(r'(sclip|mine|names)-\w{6}', config.cell.words)
    for words in ('sclip', 'names'):
        config = compose('voc21', 'proxyclip', **TOY, words=words)
        assert config.model.words[3] == ['bird'] and config.cell.words == words


def test_words_of_a_protocol_of_ones_own(tmp_path, monkeypatch):
    """A protocol that is given by its path has its own words, whatever another file of its name says."""
    text = "_base_ = '{}'\nprotocol = dict(name='mine', datasets=dict(voc21=dict(words=dict(rename=dict(bird='{}')))))"
    for folder, word in (('found', 'finch'), ('given', 'gull')):
        path = tmp_path / folder / 'protocols' / 'mine.py'
        path.parent.mkdir(parents=True)
        path.write_text(text.format(os.path.join(CONFIGS, 'protocols', 'clearclip.py'), word))
    monkeypatch.setenv('FSA_SEG_CONFIGS', str(tmp_path / 'found'))
    assert compose('voc21', 'sclip', **TOY, words='mine').model.words[3] == ['finch']
    given = compose('voc21', 'sclip', **TOY, protocol=str(path), words='mine')
    assert given.model.words[3] == ['gull'] and given.cell.words == given.cell.protocol == 'mine'
    path.write_text(path.read_text().replace("name='mine'", "name='names'"))
    with pytest.raises(UserError, match="its name is 'names', which stands for the plain class names"):
        compose('voc21', 'sclip', **TOY, protocol=str(path))


def test_published_words_that_agree_are_a_warning():
    """Of a protocol or the class names; words of a user's file that are one text to CLIP are an error."""
    config = compose('voc20', 'sclip', **TOY)
    config.model.words = [['light'], ['Light'], *config.model.words[2:]]
    for words, raises in (('names', False), ('sclip', False), ('mine-123456', True)):
        config.cell.words = words
        with pytest.raises(UserError, match='one text to CLIP') if raises else contextlib.nullcontext():
            check_config(config)


def test_saved_config_is_the_same(tmp_path):
    config = compose('context59', 'proxyclip', **TOY)
    config.dump(os.path.join(tmp_path, 'saved.py'))
    saved = load_file(os.path.join(tmp_path, 'saved.py'))
    assert is_complete(saved) and saved._cfg_dict == config._cfg_dict


def test_a_saved_config_without_a_new_runtime_entry():
    """The config gets the entry's default, and keeps its values."""
    config = compose('voc21', 'sclip', **TOY, runtime=dict(workers=0))
    for node in (config, config.model):
        for key in ('window_batch', 'compile'):
            node.pop(key)
    set_runtime(config, dict(batch_size=3))
    assert config.model.window_batch == 'auto' and config.model.compile is False
    assert config.workers == 0 and config.test_dataloader.batch_size == 3
    check_config(config)


@pytest.mark.parametrize(
    'runtime, message',
    [
        (dict(window_batch='some'), "window_batch is 'some'"),
        (dict(window_batch=0), 'window_batch is 0'),
        (dict(batch_size=0), 'batch_size is 0'),
    ],
)
def test_bad_runtime_entries(runtime, message):
    with pytest.raises(UserError, match=message):
        compose('voc21', 'sclip', **TOY, runtime=runtime)


def test_runtime_entries_are_not_in_the_hash():
    """Batches and `compile` move rounding alone."""
    hashes = [
        cell_hash(fingerprint(compose('voc21', 'sclip', **TOY, runtime=runtime)))
        for runtime in ({}, dict(window_batch=4, batch_size=2, workers=1), dict(compile=True))
    ]
    assert len(set(hashes)) == 1


@pytest.mark.parametrize('cores, processes, workers', [(2, '', 2), (16, '1', 4), (16, '8', 2), (1, '2', 0)])
def test_workers_are_at_most_the_cores(monkeypatch, cores, processes, workers):
    """By default; the processes of a machine share its cores."""
    monkeypatch.setattr('fsa_seg.config.compose.usable_cores', lambda: cores)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', processes)
    loader = compose('voc21', 'sclip', **TOY).test_dataloader
    assert loader.num_workers == workers and loader.persistent_workers == (workers > 0)


def test_a_runtime_entry_that_is_none():
    with pytest.raises(UserError, match="unknown key 'worker' in the runtime .did you mean 'workers'"):
        compose('voc21', 'sclip', **TOY, runtime=dict(worker=2))


def test_configs_that_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr('fsa_seg.config.components.CONFIGS', str(tmp_path / 'configs'))
    with pytest.raises(UserError, match='configs is missing, which ships with the package: install the package again'):
        compose('voc21', 'sclip', **TOY)


def test_the_cells_of_a_table_share_what_files_and_words_say(monkeypatch):
    """Composing the cells of a table a second time reads no component, and cleans no word."""
    counts = dict.fromkeys(('programs', 'words'), 0)

    def counting(key, function):
        def counted(*arguments):
            counts[key] += 1
            return function(*arguments)

        return counted

    monkeypatch.setattr(components, '_program', counting('programs', components._program))
    cleaned = counting('words', class_texts._cleaned)
    monkeypatch.setattr(class_texts, '_cleaned', functools.lru_cache(None)(cleaned))
    for cache in (components._shipped_config, components._shipped_component):
        cache.cache_clear()
    lists = dict(backbone=['clip_vit-b16', 'openclip_vit-h14'], method=['sclip', 'proxyclip'], feedback=[None, 'fsa'])
    cells = suite_cells(dict(name='own', groups=[dict(lists, dataset=['voc21', 'context59', 'ade20k'])]))
    first = [fingerprint(compose(**cell)) for cell in cells]
    assert len(cells) == 24 and counts['programs'] < len(cells)  # parts, of which the cells are products
    before = dict(counts)
    assert [fingerprint(compose(**cell)) for cell in cells] == first
    assert counts == before


def test_a_changed_file_counts_at_the_next_compose(monkeypatch, tmp_path):
    shutil.copytree(CONFIGS, tmp_path / 'configs')
    for module in (components, paths):
        monkeypatch.setattr(module, 'CONFIGS', str(tmp_path / 'configs'))
    protocol, vfms, words = tmp_path / 'configs/protocols/proxyclip.py', tmp_path / 'configs/vfms', tmp_path / 'w.txt'
    options = dict(dataset='voc20', method='proxyclip', feedback=None, protocol='fsa')  # `_base_` is proxyclip.py
    assert compose(**options).model.logit_scale == 40
    protocol.write_text(protocol.read_text().replace('logit_scale=40', 'logit_scale=41.5'))
    assert compose(**options).model.logit_scale == 41.5
    (vfms / 'new.py').write_text((vfms / 'dino_vit-b8.py').read_text().replace('dino_vit-b8', 'new'))
    assert compose(**options, vfm='new').cell.vfm == 'new'
    for name in ('lorry', 'juggernaut'):
        words.write_text('\n'.join([*map(str, range(19)), name]))
        assert compose(**options, words=str(words)).model.words[-1] == [name]


def test_a_config_shares_nothing_with_the_next():
    config = compose('voc21', 'proxyclip')
    config.test_dataloader.dataset.data_prefix.img_path = config.model.words[0][0] = 'another'
    config.model_wrapper_cfg.type = config.cell.title = config.model.feedback.p = 'another'
    component = load_component('protocol', 'proxyclip')
    component.datasets.voc21.words.background.append('another')
    assert 'another' not in json.dumps(to_json(compose('voc21', 'proxyclip')))
