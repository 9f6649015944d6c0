"""Methods as files: the scan, what a file must hold, and hooks that see earlier blocks, whole images and scores."""

import json
import os
import re
import sys

import pytest
import torch
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from fsa_seg import patch_logits
from fsa_seg.config.components import load_components, load_method
from fsa_seg.config.compose import compose
from fsa_seg.config.fingerprint import cell_hash, fingerprint, sources_hash
from fsa_seg.errors import UserError
from fsa_seg.methods import find_method, make_method, method_names
from fsa_seg.models.shared_pass import Member, merged_images
from fsa_seg.ops import attention
from fsa_seg.ops.attention import neighbour_bias
from fsa_seg.system import modules
from fsa_seg.system.modules import source_files

from conftest import MINI, ROOT
from new_process import run_python

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


@pytest.fixture(autouse=True)
def registered():
    """Methods of a test are registered in that test alone."""
    before = dict(MODELS.module_dict)
    yield
    for title in set(MODELS.module_dict) - set(before):
        del MODELS.module_dict[title]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / 'methods').mkdir()
    monkeypatch.setenv('FSA_SEG_CONFIGS', str(tmp_path))
    return tmp_path / 'methods'


def test_the_scan_finds_the_suites_methods():
    names = method_names(users=False)
    assert names == sorted(names) and {'clearclip', 'clip', 'maskclip', 'naclip', 'proxyclip', 'sclip'} <= set(names)
    assert not {'base', 'spelled_out', '__init__'} & set(names)


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


OWN_MAP = (
    HEAD
    + """
from mmseg.registry import MODELS
from fsa_seg.ops.attention import PAIRS, AttentionMap

assert 'vk' not in PAIRS
PAIRS['vk'] = ('v', 'k')


@MODELS.register_module()
class OwnParts(torch.nn.Module):
    pass


class Halves(AttentionMap):
    # A map of its own class: the mean of the named map and the identity.
    def __new__(cls, block):
        named = named_map('vk', block)
        return super().__new__(cls, lambda values: (named.apply(values) + values) / 2, 1.0, True)


class OwnMap(Method):
    # A method with a map of its own.
    title = 'OwnMap'

    def attention(self, block):
        return Halves(block)
"""
)


def test_a_map_whose_rows_have_another_sum_is_refused_with_feedback(folder, tiny):
    """The bare method runs; so does one that says that its rows have no constant sum."""
    images = torch.randn(1, 3, 32, 48)
    wrong = SMALL.replace("return named_map('vv', block)", "return named_map('vv', block)._replace(row_sum=2.0)")
    unlike = SMALL.replace("return named_map('vv', block)", "return named_map('vv', block)._replace(row_sum=None)")
    for text, message in (
        (wrong, r'Mine: the rows of its attention map sum to 1 to 1, and row_sum is 2; FSA needs rows of one sum'),
        (unlike, 'Mine: the rows of its attention map do not sum to one constant, which FSA needs; leave the feedback'),
    ):
        (folder / 'mine.py').write_text(text)
        path = str(folder / 'mine.py')
        patch_logits(tiny[0], images, tiny[1], method=path)
        with pytest.raises(UserError, match=message):
            patch_logits(tiny[0], images, tiny[1], method=path, feedback=True)
    in_blocks = SMALL.replace(
        "named_map('vv', block)", 'proxy_map(block.v[:, 1:].mT.unflatten(2, block.grid), block=2)'
    )
    (folder / 'mine.py').write_text(in_blocks.replace('import named_map', 'import proxy_map'))
    logits, _ = patch_logits(tiny[0], torch.randn(3, 3, 32, 48), tiny[1], method=path, feedback=True)
    assert logits.isfinite().all()


def test_a_method_with_its_own_map_in_its_file(folder, tmp_path, monkeypatch, run_tool):
    """The file runs once, though FSA_SEG_CONFIGS names its folder by a relative path, and again when it changes."""
    (folder / 'mine.py').write_text(OWN_MAP)
    monkeypatch.setenv('FSA_SEG_CONFIGS', os.path.relpath(folder.parent, tmp_path))
    monkeypatch.setattr(attention, 'PAIRS', dict(attention.PAIRS))
    for path in ('mine', 'mine.py'):
        if path == 'mine.py':
            (tmp_path / path).write_text(OWN_MAP.replace('OwnMap', 'OwnMapTwo').replace('OwnParts', 'PartsTwo'))
            del attention.PAIRS['vk']
        status, printed = run_tool('test', 'voc20', '--mini', '--method', path, '--limit', 1)
        assert status == 0, printed
    del attention.PAIRS['vk']
    os.utime(folder / 'mine.py', (1, 1))
    assert find_method('mine').title == 'OwnMap'
    with pytest.raises(UserError, match="mine.py, line 9: AssertionError in .*, line 9: assert 'vk' not in PAIRS"):
        os.utime(folder / 'mine.py', (2, 2))
        find_method('mine')


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
            SMALL.replace("title = 'Mine'", "title = 'Mine'\n    roles = {'proxy': 'pictures'}"),
            "the role 'proxy' sees 'pictures'",
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
        ('near=toy,for=toy', "unknown key 'for' in the VFMs of the method sees_all .did you mean 'far'"),
        ('near=toy,far=tay', "unknown vfm 'tay' .did you mean 'toy'"),
    ],
)
def test_roles(folder, vfm, message):
    (folder / 'sees_all.py').write_text(SEES_ALL)
    with pytest.raises(UserError, match=message):
        load_components('sees_all', None, 'toy', vfm)


@pytest.mark.parametrize(
    'vfm, names',
    [
        (None, ('dino_vit-b8', 'sam_vit-b16')),
        ('toy', ('toy', 'toy')),
        ('far=toy@image', ('dino_vit-b8', 'toy@image')),
        (dict(near='toy'), ('toy', 'sam_vit-b16')),
    ],
)
def test_a_role_without_a_vfm_has_the_published_one(folder, vfm, names):
    text = SEES_ALL.replace("    title = 'SeesAll'", "    title = 'SeesAll'\n    vfms = {'far': 'sam_vit-b16'}")
    assert text != SEES_ALL
    (folder / 'sees_all.py').write_text(text)
    found = load_components('sees_all', None, 'toy', vfm)['vfm']
    assert (found['near'].name, found['far'].name) == names
    assert found['far'].get('scope') == ('image' if '@' in names[1] else None)


def test_hooks_see_whole_images_earlier_blocks_and_scores(folder):
    """The whole image runs once through its VFM, windows once through theirs, whatever the windows at once."""
    (folder / 'sees_all.py').write_text(SEES_ALL)
    config = compose('voc21', 'sees_all', 'fsa', 'toy', 'near=toy,far=toy', data_root=MINI)
    assert config.cell.vfm == 'toy' and set(config.model.vfm) == {'near', 'far'}
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
    labels, scores = model.labels(merged[0][0], model.text, images[0], prob_thd=0.0, keep_scores=True)
    assert scores.shape[1:] == (40, 50) and torch.equal(scores.argmax(0), labels)
    model.method.refines = None  # each class gave its scores to the next
    plain, _ = model.labels(merged[0][0], model.text, images[0], prob_thd=0.0)
    assert torch.equal((plain + 1) % len(scores), labels)


def test_a_method_in_a_folder_keeps_the_contract_and_stands_in_a_table(small, tmp_path):
    """With no other file touched: contract tests, and a mini table with and without FSA."""
    (tmp_path / 'methods').mkdir()
    for name, text in dict(mine=SMALL, sees_all=SEES_ALL, nomap=NO_MAP).items():
        (tmp_path / 'methods' / f'{name}.py').write_text(text)
    environment = dict(os.environ, FSA_SEG_CONFIGS=str(tmp_path))
    contract = os.path.join(ROOT, 'tests', 'methods', 'test_contract.py')
    command = ['-m', 'pytest', '-vv', '-p', 'no:cacheprovider', '-k', 'mine or sees_all or nomap', contract]
    done = run_python(*command, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-3000:]
    for name in ('mine', 'sees_all', 'nomap'):
        assert f'test_embeddings[{name}] PASSED' in done.stdout
    tool = os.path.join(ROOT, 'tools', 'benchmark.py')
    data = ['--mini', '--data-root', small, '--datasets', 'voc20']
    command = [tool, *data, '--methods', 'mine', 'sclip', '--work-dir', str(tmp_path / 'w')]
    done = run_python(*command, env=environment)
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


@pytest.mark.parametrize('sigma', [0, -1, 1e-200, 'wide', None, float('nan'), True])
def test_naclips_sigma(sigma):
    with pytest.raises(UserError, match='NACLIP: sigma is .*; it has to be a number, at least 0.1'):
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


def test_a_users_file_never_stands_for_a_method_of_the_suite(tmp_path):
    """A copy of a shipped file, edited, keeps the title; two files of one name are two cells or an error."""
    copy = tmp_path / 'sclip.py'
    copy.write_text(SMALL.replace("'Mine'", "'SCLIP'"))
    with pytest.raises(UserError, match="a class 'SCLIP' is registered already; give the method another title"):
        compose('voc21', str(copy), backbone='toy', data_root=MINI)
    for taken in ('FSA', 'EncoderDecoder'):
        copy.write_text(SMALL.replace("'Mine'", f"'{taken}'"))
        os.utime(copy, (len(taken), len(taken)))
        with pytest.raises(UserError, match=f"a class '{taken}' is registered already"):
            compose('voc21', str(copy), backbone='toy', data_root=MINI)


def test_two_files_of_one_name_are_two_cells(tmp_path):
    configs = []
    for title, name in (('TwinOne', 'vv'), ('TwinTwo', 'identity')):
        path = tmp_path / title / 'twin.py'
        path.parent.mkdir()
        path.write_text(SMALL.replace("'Mine'", f"'{title}'").replace("'vv'", f"'{name}'"))
        configs.append(compose('voc20', str(path), None, 'toy', data_root=MINI, limit=2))
    prints = [fingerprint(config) for config in configs]
    assert cell_hash(prints[0]) != cell_hash(prints[1])
    assert sources_hash(prints[0]) != sources_hash(prints[1])
    together = MODELS.build(dict(type='SharedPass', members=[config.model for config in configs]))
    image, sample = torch.randint(256, (3, 96, 96), dtype=torch.uint8), SegDataSample(metainfo=dict(ori_shape=(96, 96)))
    out = together.test_step(dict(inputs=[image], data_samples=[sample]))[0]
    assert not torch.equal(out.pred_sem_seg_0.data, out.pred_sem_seg_1.data)


def test_modules_that_a_method_imports_are_behind_its_number(folder, monkeypatch):
    """A helper in another folder, and a helper of the helper."""
    (folder.parent / 'lib').mkdir()
    monkeypatch.syspath_prepend(str(folder.parent / 'lib'))
    for module in ('my_maps', 'my_names'):
        monkeypatch.delitem(sys.modules, module, raising=False)
    (folder.parent / 'lib' / 'my_maps.py').write_text('from my_names import NAME\n')
    names = folder.parent / 'lib' / 'my_names.py'
    names.write_text("NAME = 'qq'\n")
    (folder / 'mine.py').write_text(SMALL.replace('import torch', 'from my_maps import NAME').replace("'vv'", 'NAME'))
    config = compose('voc20', 'mine', None, 'toy', data_root=MINI)
    before = sources_hash(fingerprint(config))
    assert source_files(find_method('mine').path) == [
        str(folder / 'mine.py'),
        str(folder.parent / 'lib' / 'my_maps.py'),
        str(names),
    ]
    names.write_text("NAME = 'identity'\n")
    with pytest.raises(UserError, match='my_names.py has changed since it was imported: start Python anew'):
        fingerprint(config)
    modules._imported.clear()  # as in a new process
    assert sources_hash(fingerprint(config)) != before


def test_a_result_of_a_users_method_runs_again(folder, run_tool, tmp_path):
    """In a folder of FSA_SEG_CONFIGS; elsewhere the error says so. A path in a result is never run."""
    (folder / 'mine.py').write_text(SMALL.replace('Mine', 'Again'))
    (folder / 'broken.py').write_text('x = 1 / 0\n')  # which nothing asks for
    command = ('test', 'voc20', '--mini', '--method', 'mine', '--no-fsa', '--limit', 2, '--out')
    assert run_tool(*command, 'r.json')[0] == 0
    MODELS.module_dict.pop('Again')
    status, printed = run_tool('test', 'r.json', '--out', 'again.json')
    assert status == 0, printed
    one, two = (json.loads((tmp_path / name).read_text()) for name in ('r.json', 'again.json'))
    assert one['confusion'] == two['confusion'] and one['hash'] == two['hash']
    MODELS.module_dict.pop('Again')
    (folder / 'mine.py').rename(folder.parent / 'moved.py')
    status, printed = run_tool('test', 'r.json', '--out', 'gone.json')
    assert status == 1 and ('FSA_SEG_CONFIGS' in printed or 'broken.py' in printed)
    one['config']['model'].update(type='TrainingFreeSegmentor', method=dict(type=str(folder.parent / 'moved.py')))
    (tmp_path / 'evil.json').write_text(json.dumps(one))
    status, printed = run_tool('test', 'evil.json', '--out', 'evil_out.json')
    assert status == 1 and 'unknown method in evil.json' in printed


def test_spelled_out_methods_run_again_from_a_result(run_tool):
    status, printed = run_tool(
        'test', 'voc20', '--mini', '--method', 'clip', '--no-fsa', '--limit', 1, '--out', 'r.json'
    )
    assert status == 0, printed
    with open('r.json', encoding='utf-8') as f:
        result = json.load(f)
    result['config']['model'].update(type='TrainingFreeSegmentor', method=dict(type='spelled_out', attention='vv'))
    with open('s.json', 'w', encoding='utf-8') as f:
        json.dump(result, f)
    status, printed = run_tool('test', 's.json', '--out', 'again.json')
    assert status == 0, printed


@pytest.mark.parametrize(
    'old, new, message',
    [
        ("title = 'Mine'", "title = 'Mine'\n    roles = ['proxy']", 'roles is .*; it has to be a dict'),
        ("title = 'Mine'", "title = 'Mine'\n    def __init__(self, tau=1): self.t = tau", 'under another name'),
        ('import torch', 'import sys; sys.exit(3)', 'mine.py, line 3: SystemExit: 3'),
        ('class Mine', '\0class Mine', 'mine.py.*null byte'),
    ],
)
def test_more_files_that_are_no_method(folder, old, new, message):
    (folder / 'mine.py').write_text(SMALL.replace(old, new))
    with pytest.raises(UserError, match=message):
        find_method('mine')
    (folder / 'folder.py').mkdir()
    with pytest.raises(UserError, match='folder.py cannot be read'):
        find_method('folder')
    (folder / '_helper.py').write_text('x = 1\n')
    assert '_helper' not in method_names()


@pytest.mark.parametrize(
    'hook, message',
    [
        ('def inner_blocks(self, depth): return 1', 'inner_blocks returned 1; it has to be indices'),
        ('def inner_blocks(self, depth): return (depth,)', 'the method reads block 5'),
        ('def grid(self, clip, vfms): return 3', 'grid returned 3; it has to be two whole numbers'),
        ('def grid(self, clip, vfms): return (1, 2)', 'the hook `grid` returned .1, 2., and the attention map is on'),
        ('def keep(self, block): return [1] * 9', 'keep returned 9 values for 1 windows'),
        ('def merge(self, windows, layout): return windows[0].cosines', 'merge returned Tensor; it has to have'),
        ("refines = 'cosines'\n    def refine(self, values, image, text): return None", 'refine returned None'),
        ("refines = 'labels'\n    def refine(self, values, image, text): return values.float()", 'keep shape and type'),
        (
            'def embed(self, block, attention):\n'
            '        return block.embed(attention._replace(apply=lambda values: values[..., :5]))',
            '`apply` has to keep the shape',
        ),
    ],
)
def test_hooks_that_return_something_else(folder, run_tool, hook, message):
    (folder / 'mine.py').write_text(SMALL + f'\n    {hook}\n')
    status, printed = run_tool('test', 'voc20', '--mini', '--method', 'mine', '--no-fsa', '--limit', 1)
    assert status == 1 and re.search(message, printed), printed[-500:]
    assert 'Traceback' not in printed


@pytest.mark.parametrize(
    'options, message',
    [
        (['model.refinement=FSA'], "unknown refinement 'FSA'"),
        (['model.refinement=SCLIP'], "unknown refinement 'SCLIP'"),
        (['model.feedback.type=PAMR'], "unknown feedback 'PAMR'"),
        (['model.refinement.steps=3'], 'switch it on by model.refinement=PAMR before'),
    ],
)
def test_refinements_and_feedbacks_are_told_from_other_classes(run_tool, options, message):
    status, printed = run_tool('test', 'voc20', '--mini', '--cfg-options', *options)
    assert status == 1 and message in printed, printed


@pytest.mark.parametrize('vfm', ['proxy=toy,nonsense', 'proxy=toy,proxy=mae_vit-b16', 'proxy=', '=toy'])
def test_roles_that_are_misspelt(vfm):
    with pytest.raises(UserError, match='give role=name,role=name, each role once'):
        load_components('proxyclip', None, 'toy', vfm)


def test_vfms_of_whole_images_run_alone(folder):
    """Two that see the whole image, with unlike multiples: each gets the image padded for itself, once."""
    text = SEES_ALL.replace("'near': 'window'", "'near': 'image'").replace(
        "block.features['near'].mean((1, 2, 3))", 'far'
    )
    text = text.replace('near.sigmoid()', 'far.sigmoid()').replace("<= {'far'}", "<= {'far', 'near'}")
    (folder / 'sees_all.py').write_text(text.replace('SeesAll', 'SeesImages'))
    config = compose('voc21', 'sees_all', None, 'toy', 'near=toy,far=toy', data_root=MINI).model
    config.vfm.near = dict(type='TimmViT', model='vit_small_patch14_dinov2', random_weights=0)
    model, runs = MODELS.build(dict(config, window=64, stride=32)), []
    for vfm in model.vfms.values():
        vfm.register_forward_hook(lambda _, inputs, out: runs.append(tuple(inputs[0].shape[2:])))
    list(merged_images([Member(model, model.text)], [torch.randn(3, 64, 96)], [(40, 50)]))
    assert sorted(runs) == [(64, 96), (70, 98)]


def test_a_misspelt_hook(folder):
    (folder / 'wronghook.py').write_text(SMALL.replace('def attention', 'def attentoin'))
    with pytest.raises(UserError, match="attentoin is no hook of a method .did you mean 'attention'"):
        find_method('wronghook')


def test_a_helper_beside_a_methods_file(folder, monkeypatch):
    """A file whose name begins with _ is a helper: the method imports it."""
    monkeypatch.delitem(sys.modules, '_own_helper', raising=False)
    (folder / '_own_helper.py').write_text("NAME = 'qq'\n")
    (folder / 'helped.py').write_text(
        SMALL.replace('import torch', 'from _own_helper import NAME').replace("'vv'", 'NAME').replace('Mine', 'Helped')
    )
    assert source_files(find_method('helped').path)[1:] == [str(folder / '_own_helper.py')]
