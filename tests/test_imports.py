"""Who imports whom: imports run downwards only, and `import fsa_seg` loads nothing."""

import ast
import os
import re
import subprocess
import sys

import pytest

from conftest import ROOT

# from the lowest; a folder or module imports those before it, and itself. docs/architecture.md draws the same.
LAYERS = (
    'errors',
    'settings',
    'system',
    'ops',
    'methods',
    'models',
    'datasets',
    'config',
    'visualization',
    'evaluation',
    'sweep',
    'apps',
    'profiling',
    'register',
    'cli',
    '__main__',
)
TORCH_ALONE = ('ops',)  # folders that import torch and Python's own library alone


def files():
    for folder, _, names in os.walk(os.path.join(ROOT, 'fsa_seg')):
        yield from (os.path.join(folder, name) for name in sorted(names) if name.endswith('.py'))


def imported(path):
    """Return the modules that a file imports anywhere, as dotted names."""
    with open(path, encoding='utf-8') as f:
        tree = ast.parse(f.read())
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path}: relative import'
            names += (
                [f'{node.module}.{alias.name}' for alias in node.names] if node.module == 'fsa_seg' else [node.module]
            )
    return names


def layer(path):
    parts = os.path.relpath(path, os.path.join(ROOT, 'fsa_seg')).split(os.sep)
    return os.path.splitext(parts[0])[0]


def test_every_folder_has_a_layer():
    assert {layer(path) for path in files()} == {*LAYERS, '__init__'}


@pytest.mark.parametrize('path', [os.path.relpath(path, ROOT) for path in files()])
def test_imports_run_downwards(path):
    path = os.path.join(ROOT, path)
    own = layer(path)
    below = LAYERS[: LAYERS.index(own) + 1] if own in LAYERS else ()
    for name in imported(path) if own != '__init__' else ():
        if name.split('.')[0] == 'fsa_seg' and name != 'fsa_seg.__version__':
            assert name.split('.')[1] in below, f'{path} imports {name}, which lies above it'
        elif own in TORCH_ALONE:
            assert name.split('.')[0] in {'torch', *sys.stdlib_module_names}, f'{path} imports {name}'


def test_sources_import_what_prepares_them_downwards():
    """In datasets/prepare the plan lies lowest, and no source imports another."""
    order = ('plan', 'downloads', 'sources', 'preparations', 'preparation')
    sources = ('voc', 'context', 'coco', 'cityscapes', 'ade20k')
    for path in files():
        parts = path.split(os.sep)
        name = os.path.splitext(parts[-1])[0]
        if parts[-2] != 'prepare' or name == '__init__':
            continue
        for module in imported(path):
            if module.startswith('fsa_seg.datasets.prepare.'):
                other = module.split('.')[3]
                ranks = [order.index('sources' if item in sources else item) for item in (name, other)]
                assert ranks[0] > ranks[1] or {name, other} == {'plan', 'downloads'}, (name, other)


@pytest.mark.parametrize(
    'statement, absent',
    [
        ('import fsa_seg', ('torch', 'numpy', 'mmengine', 'open_clip')),
        (
            'import fsa_seg.ops.attention, fsa_seg.ops.feedback, fsa_seg.ops.pamr',
            ('mmengine', 'mmseg', 'open_clip', 'timm'),
        ),
        ('import fsa_seg.evaluation.report.published', ('torch', 'mmengine', 'mmseg', 'open_clip')),
    ],
)
def test_what_an_import_loads(statement, absent):
    code = f'{statement}\nimport sys\nprint([name for name in {absent!r} if name in sys.modules])'
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == '[]', run.stdout


def test_a_number_needs_no_report():
    """A result is the same whatever evaluation/report and apps/demo are: a digest of the sources leaves them out."""
    readers = tuple(os.path.join(*parts, '') for parts in (('evaluation', 'report'), ('apps', 'demo')))
    for path in files():
        own = os.path.relpath(path, os.path.join(ROOT, 'fsa_seg'))
        if own.startswith(readers) or own == '__init__.py' or layer(path) == 'cli':
            continue
        with open(path, encoding='utf-8') as f:
            nodes = [node for node in ast.walk(ast.parse(f.read())) if isinstance(node, ast.ImportFrom)]
        names = imported(path) + [f'{node.module}.{alias.name}' for node in nodes for alias in node.names]
        heads = tuple(f'fsa_seg.{folder.replace(os.sep, ".")}' for folder in readers)
        assert not [name for name in names if f'{name}.'.startswith(heads)], path


def test_public_names_are_imported_when_they_are_used():
    import fsa_seg

    assert callable(fsa_seg.patch_logits) and callable(fsa_seg.Segmenter)
    with pytest.raises(AttributeError, match='no_such_name'):
        _ = fsa_seg.no_such_name


def test_the_page_of_the_architecture_is_the_codes():
    """docs/architecture.md lists every folder in its order, and every file."""
    with open(os.path.join(ROOT, 'docs', 'architecture.md'), encoding='utf-8') as f:
        rows = [line.split('|')[1:-1] for line in f if line.startswith('| `')]
    assert [cells[0].strip().strip('`') for cells in rows] == list(LAYERS)
    listed = {cells[0].strip().strip('`'): set(re.findall('`([a-z_0-9]+)`', cells[2])) for cells in rows}
    listed['datasets'].remove('prepare')  # a folder
    listed['evaluation'].remove('report')  # a folder
    listed['apps'].remove('demo')  # a folder
    present = {}
    for path in files():
        name = os.path.splitext(os.path.basename(path))[0]
        if name != '__init__' and os.path.dirname(path) != os.path.join(ROOT, 'fsa_seg'):
            present.setdefault(layer(path), set()).add(name)
    for folder, names in present.items():
        assert listed[folder] == names, folder
