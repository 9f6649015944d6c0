"""Methods as files: the scan, what a file must hold, and hooks that see earlier blocks, whole images and scores."""

import json
import os
import subprocess
import sys

import pytest
import torch
from mmseg.registry import MODELS

from fsa_seg.config.components import load_components, load_method
from fsa_seg.config.compose import compose
from fsa_seg.errors import UserError
from fsa_seg.methods import find_method, make_method, method_names
from fsa_seg.models.shared_pass import Member, merged_images
from fsa_seg.ops.attention import neighbour_bias

from conftest import MINI, ROOT

HEAD = 'from fsa_seg.methods.base import Method\nfrom fsa_seg.ops.attention import named_map\nimport torch\n\n'
# reads an earlier block, two VFMs of which one sees the whole image, keeps something of each window for the merge, and
# refines scores
SEES_ALL = (
    HEAD
    + '''
class SeesAll(Method):
    """Attention of an earlier block's keys, patches blurred by two VFMs."""

    title = 'SeesAll'
    protocol = 'sclip'
    roles = {'near': 'window', 'far': 'image'}
    refines = 'scores'

    def __init__(self, weight: float = 0.5):
        self.weight = weight

    def inner_blocks(self, depth):
        return (depth - 2,)

    def attention(self, block):
        (earlier,) = block.inner.values()
        return named_map('kk', earlier)

    def embed(self, block, attention):
        far = torch.stack([features.mean() for features in block.image_features['far']])
        near = block.features['near'].mean((1, 2, 3))
        embeddings = block.embed(attention)
        shift = self.weight * (far.sigmoid() + near.sigmoid())[:, None, None]
        return torch.nn.functional.normalize(embeddings + shift * embeddings.mean(1, keepdim=True), dim=-1)

    def keep(self, block):
        return [window.columns for window in block.windows] if block.windows else [None] * len(block.tokens)

    def merge(self, windows, layout):
        kept = [window.kept for window in windows]
        assert all(place in (None, window.columns) for place, window in zip(kept, windows))
        assert set(layout.image_features or {}) <= {'far'}
        return super().merge(windows[::-1], layout)

    def refine(self, values, image, text):
        assert image.shape[1:] == values.shape[1:]
        return values.roll(1, 0)
'''
)
NO_MAP = (
    HEAD
    + '''
class NoMap(Method):
    """Patches as they enter the last block: there is no attention map."""

    title = 'NoMap'

    def embed(self, block, attention):
        x = block.visual.ln_post(block.tokens[:, 1:]) @ block.visual.proj
        return torch.nn.functional.normalize(x.float(), dim=-1)
'''
)
SMALL = (
    HEAD
    + '''
class Mine(Method):
    """Attention of values."""

    title = 'Mine'
    protocol = 'clearclip'

    def attention(self, block):
        return named_map('vv', block)
'''
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / 'methods').mkdir()
    monkeypatch.setenv('FSA_SEG_CONFIGS', str(tmp_path))
    return tmp_path / 'methods'


def test_the_scan_finds_the_suites_methods():
    assert method_names(users=False) == ['clearclip', 'clip', 'maskclip', 'naclip', 'proxyclip', 'sclip']


def test_a_file_is_a_method(folder):
    """By its name in a folder of FSA_SEG_CONFIGS, or by its path; and its own segmentor is registered."""
    (folder / 'mine.py').write_text(SMALL)
    assert 'mine' in method_names() and 'mine' not in method_names(users=False)
    config = compose('voc21', 'mine', backbone='toy', data_root=MINI)
    assert (config.model.type, config.cell.method, config.cell.title) == ('Mine', 'mine', 'Mine')
    assert config.cell.protocol == 'clearclip' and MODELS.get('Mine').method_name == 'mine'
    (folder.parent / 'elsewhere.py').write_text(SMALL.replace('Mine', 'Elsewhere'))
    path = str(folder.parent / 'elsewhere.py')
    assert compose('voc21', path, backbone='toy', data_root=MINI).cell.method == 'elsewhere'


def test_a_changed_file_is_read_again(folder):
    path = folder / 'mine.py'
    path.write_text(SMALL)
    assert make_method('mine').protocol == 'clearclip'
    path.write_text(SMALL.replace("'clearclip'", "'sclip'"))
    os.utime(path, (1, 1))
    assert make_method('mine').protocol == 'sclip'


@pytest.mark.parametrize(
    'text, message',
    [
        ('', r'mine.py has to define exactly one subclass of .*; it defines none'),
        (SMALL + SMALL.split('import torch')[1].replace('Mine', 'Other'), 'it defines Mine, Other'),
        (SMALL.replace("    title = 'Mine'\n", ''), "title is ''; it has to be a name"),
        (SMALL.replace("'Mine'", "'SCLIP'"), "a class 'SCLIP' is registered already; give the method another title"),
        (SMALL + '\nx = 1 / 0\n', 'mine.py, line 15: ZeroDivisionError: division by zero'),
        (SMALL + '\ndef broken(:\n', 'mine.py, line 15: SyntaxError'),
        (HEAD + 'import no_such_module', "mine.py, line 5: ModuleNotFoundError: No module named 'no_such_module'"),
        (
            SMALL.replace("title = 'Mine'", "title = 'Mine'\n    roles = {'proxy': 'windows'}"),
            "the role 'proxy' sees 'windows'",
        ),
        (SMALL.replace("title = 'Mine'", "title = 'Mine'\n    refines = 'pixels'"), "refines is 'pixels'"),
        (
            SMALL.replace("title = 'Mine'", "title = 'Mine'\n    def __init__(self, k): self.k = k"),
            'the setting k has no default',
        ),
        ("method = dict(name='mine')", 'it defines none'),
    ],
)
def test_a_file_that_is_no_method(folder, text, message):
    (folder / 'mine.py').write_text(text)
    with pytest.raises(UserError, match=message):
        compose('voc21', 'mine', backbone='toy', data_root=MINI)


def test_names(folder):
    (folder / 'sclip.py').write_text(SMALL)
    with pytest.raises(UserError, match="sclip.py: 'sclip' is the name of a method of the suite; rename the file"):
        method_names()
    os.remove(folder / 'sclip.py')
    with pytest.raises(UserError, match="unknown method 'sclap' .did you mean 'sclip'"):
        find_method('sclap')
    with pytest.raises(UserError, match='method file.*gone.py'):
        load_method('gone.py')
    for wrong in ('base', '__init__', 'errors', '../models/clip'):
        with pytest.raises(UserError, match='unknown method'):
            find_method(wrong)


def test_feedback_on_a_method_without_a_map(folder, run_tool):
    """It is refused before anything is loaded; without FSA the method runs."""
    (folder / 'nomap.py').write_text(NO_MAP)
    status, printed = run_tool('test', 'voc20', '--mini', '--method', 'nomap')
    assert (
        status == 1 and 'NoMap has no attention map that FSA could adapt; leave out the feedback (--no-fsa)' in printed
    )
    status, printed = run_tool('test', 'voc20', '--mini', '--method', 'nomap', '--no-fsa', '--limit', 2)
    assert status == 0 and 'NoMap on voc20' in printed, printed


@pytest.mark.parametrize(
    'vfm, message',
    [
        ('toy', 'needs a VFM for the role near, far: name it, such as --vfm near=dino_vit-b8,far=dino_vit-b8'),
        ('near=toy', 'needs a VFM for the role far'),
        ('near=toy,for=toy', "unknown key 'for' in the VFMs of the method sees_all .did you mean 'far'"),
        ('near=toy,far=tay', "unknown vfm 'tay' .did you mean 'toy'"),
    ],
)
def test_roles(folder, vfm, message):
    (folder / 'sees_all.py').write_text(SEES_ALL)
    with pytest.raises(UserError, match=message):
        load_components('sees_all', None, 'toy', vfm)


def test_hooks_see_whole_images_earlier_blocks_and_scores(folder):
    """The whole image runs once through its VFM, windows once through theirs, whatever the windows at once."""
    (folder / 'sees_all.py').write_text(SEES_ALL)
    config = compose('voc21', 'sees_all', 'fsa', 'toy', 'near=toy,far=toy', data_root=MINI)
    assert config.cell.vfm == 'near=toy,far=toy' and set(config.model.vfm) == {'near', 'far'}
    model = MODELS.build(dict(config.model, window=64, stride=32))
    runs = {role: [] for role in ('near', 'far')}
    far = model.vfms.far
    model.vfms.far = far = MODELS.build(config.model.vfm.far)  # one module would see both roles
    for role, vfm in (('near', model.vfms.near), ('far', far)):
        vfm.register_forward_hook(lambda _, inputs, out, role=role: runs[role].append(tuple(inputs[0].shape)))
    images = [torch.randn(3, 64, 96), torch.randn(3, 64, 70)]
    merged = list(merged_images([Member(model, model.text)], images, [(40, 50), (20, 30)]))
    assert runs == dict(near=[(1, 3, 64, 64)] * 4, far=[(1, 3, 64, 96), (1, 3, 64, 72)])
    bare = MODELS.build(dict(config.model, window=64, stride=32, type='SeesAll', method=dict(weight=0.0)))
    other = list(merged_images([Member(bare, bare.text)], images, [(40, 50), (20, 30)]))
    pixels = [next(iter(found[0].cosines.tiles(10**9)))[1] for found in (merged[0], other[0])]
    assert (pixels[0] - pixels[1]).abs().max() > 1e-4  # the VFMs matter
    model.area_thd = None
    labels, scores = model.labels(merged[0][0].cosines, model.text, images[0], prob_thd=0.0, keep_scores=True)
    assert scores.shape[1:] == (40, 50) and torch.equal(scores.argmax(0), labels)
    model.method.refines = None  # each class gave its scores to the next
    plain, _ = model.labels(merged[0][0].cosines, model.text, images[0], prob_thd=0.0)
    assert torch.equal((plain + 1) % len(scores), labels)


def test_a_method_in_a_folder_keeps_the_contract_and_stands_in_a_table(tmp_path):
    """With no other file touched: contract tests, and a mini table with and without FSA."""
    (tmp_path / 'methods').mkdir()
    for name, text in dict(mine=SMALL, sees_all=SEES_ALL, nomap=NO_MAP).items():
        (tmp_path / 'methods' / f'{name}.py').write_text(text)
    environment = dict(os.environ, FSA_SEG_CONFIGS=str(tmp_path))
    contract = os.path.join(ROOT, 'tests', 'methods', 'test_contract.py')
    command = ['-m', 'pytest', '-vv', '-p', 'no:cacheprovider', '-k', 'mine or sees_all or nomap', contract]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    for name in ('mine', 'sees_all', 'nomap'):
        assert f'test_embeddings[{name}] PASSED' in done.stdout
    tool = os.path.join(ROOT, 'tools', 'benchmark.py')
    command = [tool, '--mini', '--methods', 'mine', 'sclip', '--datasets', 'voc20', '--work-dir', str(tmp_path / 'w')]
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(' | ')[0] for line in done.stdout.splitlines() if '| toy |' in line]
    assert rows == ['| Mine', '| Mine + FSA', '| SCLIP', '| SCLIP + FSA']
    results = [json.loads(path.read_text()) for path in (tmp_path / 'w' / 'results').iterdir()]
    assert {result['cell']['method'] for result in results} == {'mine', 'sclip'}
    mine = next(result for result in results if result['cell']['method'] == 'mine')
    assert 'method file' in [key for key, *_ in mine['fingerprint']]


def test_settings_of_a_method_show_in_its_row():
    method = load_method(dict(type='naclip', sigma=3.0))
    assert (method.name, method.row_title, method.sigma) == ('naclip sigma=3.0', 'NACLIP sigma=3.0', 3.0)
    named = load_method(dict(type='naclip', sigma=3.0, name='narrow', protocol='fsa'))
    assert (named.name, named.row_title, named.protocol) == ('narrow', 'narrow', 'fsa')
    assert make_method('naclip').protocol == 'naclip'  # the class keeps its own


@pytest.mark.parametrize('sigma', [0, -1, 'wide', None, float('nan'), True])
def test_naclips_sigma(sigma):
    with pytest.raises(UserError, match='NACLIP: sigma is .*; it has to be a number above 0'):
        make_method(dict(type='naclip', sigma=sigma))


def test_naclips_map_is_the_published_one(tiny):
    """By direct evaluation: softmax(kkᵀ/√d + ω), ω the same for all heads."""
    from fsa_seg.models.clip import trunk
    from fsa_seg.ops.last_block import LastBlock

    visual, _ = tiny
    block = LastBlock(visual, *trunk(visual, torch.randn(1, 3, 32, 48)))
    attention = make_method(dict(type='naclip', sigma=2.0)).attention(block)
    keys = block.k[0].unflatten(1, (block.heads, -1)).transpose(0, 1)
    dense = (keys @ keys.transpose(1, 2) / keys.shape[2] ** 0.5 + neighbour_bias((2, 3), 2.0)).softmax(-1)
    values = block.v[0].unflatten(1, (block.heads, -1)).transpose(0, 1)
    expected = (dense @ values).transpose(0, 1).flatten(1)
    torch.testing.assert_close(attention.apply(block.v)[0], expected, atol=1e-5, rtol=1e-5)
