"""A value of a wrong type or out of its range is one clear error, in files and in options."""

import copy
import random

import pytest

from fsa_seg.config.compose import compose, merge_options
from fsa_seg.errors import UserError
from fsa_seg.settings import FLAG, TEXT, choice, dict_of, either, list_of, number, whole

TOY = dict(backbone='toy', vfm='toy', data_root='data/mini')
WRONG = (
    'x',
    '',
    -1,
    0.5,
    10**30,
    float('nan'),
    float('inf'),
    None,
    True,
    [],
    [1, 2],
    {},
    {'type': 'x'},
    [[]],
    ['a', None],
)


@pytest.mark.parametrize(
    'rule, right, wrong',
    [
        (whole(0, 5), (0, 5), (-1, 6, 1.0, True, '1', None)),
        (number(0, 1), (0, 1, 0.5), (-0.1, 1.1, float('nan'), True, '0', [0])),
        (number(0, 1, above=True), (1e-9, 1), (0,)),
        (choice('auto', 3), ('auto', 3), ('a', 3.0, None)),
        (FLAG, (True, False), (1, 0, 'True', None)),
        (TEXT, ('a',), ('', ' ', 'a\0b', 5, None)),
        (list_of(TEXT, 1, 2), (['a'], ('a', 'b')), ([], ['a'] * 3, 'ab', [1])),
        (dict_of(whole(0)), (dict(a=1), {}), (dict(a=-1), {5: 1}, [1])),
        (either(FLAG, whole(2)), (True, 2), (1,)),
    ],
)
def test_rules(rule, right, wrong):
    assert all(map(rule.fits, right)) and not any(map(rule.fits, wrong))


def leaves(node, path=()):
    """Yield the dotted key of every dict, list and value below a node."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, (dict, list, tuple)) and value:
            yield from leaves(value, (*path, str(key)))
        yield '.'.join((*path, str(key)))


def test_any_value_anywhere_is_taken_or_is_one_error():
    """An option of any kind at any place of a composed config gives a config or a UserError, and no other exception."""
    config = compose('voc21', 'proxyclip', **TOY)
    keys = [key for key in leaves(config._cfg_dict) if not key.startswith('model.words.')] + [
        'model.words.0',
        'model.words.0.0',
        'model.words.0.99',
        'model.words.x',
        'model.word',
        'modle.window',
        'model',
        '0.1',
    ]
    choices = random.Random(0).sample([(key, value) for key in keys for value in WRONG], 220)
    refused = 0
    for key, value in choices + [
        ('model.prob_thd', [0, 3]),
        ('model.words.0.0', ''),
        ('model.area_thd', 2),
        ('launcher', 'pytorch'),
        ('model.logit_scale', float('inf')),
        ('model.backbone.std', [0, 1, 1]),
        ('cell.toy', False),
        ('test_dataloader.dataset.pipeline.0', 3),
    ]:
        changed = copy.deepcopy(config)
        try:
            merge_options(changed, {key: value})
        except UserError as error:
            assert key.split('.')[-1] in str(error) or key in str(error), (key, value, str(error))
            refused += 1
    assert refused > 150


@pytest.mark.parametrize(
    'kind, text, message',
    [
        (
            'protocol',
            "_base_ = 'P'\nprotocol = dict(name='x', default=dict(short=0))",
            'short is 0; it has to be a whole number, 1 to',
        ),
        (
            'protocol',
            "_base_ = 'P'\nprotocol = dict(name='x', default=dict(prob_thd=1.5))",
            'prob_thd is 1.5; it has to be a number, 0 to 1',
        ),
        (
            'protocol',
            "_base_ = 'P'\nprotocol = dict(name='x', default=dict(stride=500))",
            'stride is 500; it has to be at most the window',
        ),
        (
            'protocol',
            "_base_ = 'P'\nprotocol = dict(name='x', default=dict(words=dict(backgrond=['a'])))",
            "did you mean 'background'",
        ),
        (
            'protocol',
            "_base_ = 'P'\nprotocol = dict(name='x', default=dict(words=dict(background='a')))",
            "background is 'a'",
        ),
        ('protocol', "_base_ = 'P'\nprotocol = dict(name='x', datasets=dict(voc21=5))", 'datasets is'),
        (
            'dataset',
            "dataset = dict(name=5, type='PascalVOCDataset', data_root='x', data_prefix={})",
            'name is 5; it has to be a text',
        ),
        (
            'dataset',
            "dataset = dict(name='x', type='PascalVOCDataset', data_root='x', data_prefix=5)",
            'data_prefix is 5',
        ),
        ('feedback', "feedback = dict(name='x', type=5)", 'type is 5'),
        ('backbone', "backbone = dict(name='x', model='ViT-B-16', mean=0.5)", 'mean is 0.5; it has to be 3 values'),
        ('vfm', "vfm = dict(name='x', type='TimmViT', model='m', std=(0.2, 0.2, 0))", 'std is'),
    ],
)
def test_values_in_component_files(tmp_path, kind, text, message):
    from fsa_seg.system.paths import CONFIGS

    (tmp_path / 'component.py').write_text(text.replace("'P'", repr(f'{CONFIGS}/protocols/sclip.py')))
    arguments = {**dict(dataset='voc21', method='proxyclip'), **TOY, kind: str(tmp_path / 'component.py')}
    with pytest.raises(UserError, match=message):
        compose(**arguments)


@pytest.mark.parametrize('value', [5, float('nan'), '0.5', True])
def test_a_threshold_of_a_single_picture(value):
    from fsa_seg import Segmenter

    segmenter = Segmenter.__new__(Segmenter)
    with pytest.raises(UserError, match='prob_thd is'):
        segmenter.segment('no.png', ['cat'], value)


@pytest.mark.parametrize(
    'arguments, status, message',
    [
        (['--cfg-options', 'foo'], 2, "'foo' is not KEY=VALUE"),
        (['--cfg-options', '=3'], 2, 'is not KEY=VALUE'),
        (['--cfg-options', 'model.prob_thd=0,3'], 1, 'it holds a number'),
        (['--words', ''], 2, 'is empty'),
        (['--cfg-options', 'model.words.0.0='], 1, 'words is'),
        (['--random-weights', str(10**30)], 1, 'random_weights is 1000'),
        (['--cfg-options', 'launcher=pytorch'], 1, 'use --launcher'),
        (['--out', ''], 2, 'is empty'),
        (['--limit', str(10**40)], 1, 'limit is'),
        (['--cfg-options', 'cell.toy=False'], 1, 'it tells what the run is'),
        (['--work-dir', ' '], 2, 'is empty'),
        (['--cfg-options', 'test_dataloader.dataset.pipeline.1.scale=7'], 1, 'it holds a list'),
    ],
)
def test_options(run_tool, arguments, status, message):
    exit_status, printed = run_tool('test', 'voc21', '--mini', *arguments)
    assert exit_status == status and message in printed and 'Traceback' not in printed, printed
