"""The documents' examples run as they stand."""

import glob
import inspect
import json
import os
import re
import textwrap

import pytest

from fsa_seg.methods import find_method, method_files
from fsa_seg.methods.naclip import NACLIP

from conftest import ROOT
from documents import DOCUMENTS, PAGES, blocks, read
from new_process import run_python


def test_the_method_of_the_documents_keeps_the_contract(tmp_path):
    """The command that tests it is the page's."""
    (example,) = [block for block in blocks('docs/extending.md') if 'class ValueCLIP' in block]
    (command,) = [block for block in blocks('docs/extending.md', 'bash') if 'test_contract.py' in block]
    (tmp_path / 'methods').mkdir()
    (tmp_path / 'methods' / 'valueclip.py').write_text(example)
    environment = dict(os.environ, FSA_SEG_CONFIGS=str(tmp_path))
    arguments = command.split(' python ')[1].split()
    done = run_python(*arguments, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_vfm_of_the_documents_is_one_file(tmp_path):
    """It passes the tests of components, runs, and runs again from its result in a new process; so does a path."""
    (example,) = [block for block in blocks('docs/extending.md') if 'class Colours' in block]
    (commands,) = [block for block in blocks('docs/extending.md', 'bash') if '--vfm colours' in block]
    (tmp_path / 'mine' / 'vfms').mkdir(parents=True)
    (tmp_path / 'mine' / 'vfms' / 'colours.py').write_text(example)
    environment = dict(os.environ, FSA_SEG_CONFIGS='mine')  # a relative path, as in the command

    def run(*arguments):
        arguments = [os.path.join(ROOT, word) if word.startswith(('tools/', 'tests/')) else word for word in arguments]
        done = run_python(*arguments, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    mini, tests = (line.split(' python ')[1].split() for line in commands.splitlines())
    assert 'test_vfm[colours] PASSED' in run(*tests, '-vv', '-p', 'no:cacheprovider')
    run(*mini, '--limit', '1', '--out', 'r.json')
    run('tools/test.py', 'r.json', '--out', 'again.json')
    run(*mini[:-1], 'mine/vfms/colours.py', '--limit', '1', '--out', 'path.json')
    results = [json.loads((tmp_path / name).read_text()) for name in ('r.json', 'again.json', 'path.json')]
    assert len({result['hash'] for result in results}) == 1
    for result in results:
        assert result['confusion'] == results[0]['confusion'] and result['weights'] == results[0]['weights']
        assert [entry for entry in result['fingerprint'] if entry[2] == 'source'] == [
            entry for entry in results[0]['fingerprint'] if entry[2] == 'source'
        ]
    (tmp_path / 'mine' / 'vfms' / 'colours.py').rename(tmp_path / 'moved.py')
    with pytest.raises(AssertionError, match="asks for 'Colours', which is no class of this suite"):
        run('tools/test.py', 'r.json', '--out', 'gone.json')


def test_naclips_example_is_the_code():
    """But for docstrings and for lines that the page leaves out, every line of the example is in the file."""
    source = inspect.getsource(NACLIP)
    (example,) = [block for block in blocks('docs/extending.md') if 'class NACLIP' in block]
    assert all(line in source.splitlines() for line in example.splitlines())
    with open(os.path.join(ROOT, 'configs', 'protocols', 'naclip.py'), encoding='utf-8') as f:
        protocol = f.read()
    assert [block for block in blocks('docs/extending.md') if block in protocol]


def test_the_tables_of_protocols_are_those_of_the_files():
    """The page's program prints the page's table of settings, and each method's own protocols are its class's."""
    (program,) = blocks('docs/protocols.md')
    environment = {key: value for key, value in os.environ.items() if key != 'FSA_SEG_CONFIGS'}
    done = run_python('-c', program, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    page = read('docs/protocols.md')
    assert f'\n\n{done.stdout}\n' in page
    rows = re.findall(r'^\| (`.+`) \| `(\w+)` \| `(\w+)` \|$', page, re.M)
    shown = {name: own for names, *own in rows for name in re.findall(r'`(\w+)`', names)}
    methods = {name: find_method(name) for name in method_files(users=False)}
    assert shown == {name: [cls.protocol, cls.fsa_protocol or cls.protocol] for name, cls in methods.items()}


def test_python_examples_print_what_the_pages_show(tmp_path):
    """One process runs the examples that have an output of their own; figures may differ in their last digit."""
    pattern = r'^```python\n((?:(?!```).)*)^```\n\n```\n(.*?)^```'
    examples = [
        example for page in ('python', 'mmseg') for example in re.findall(pattern, read(f'docs/{page}.md'), re.M | re.S)
    ]
    assert len(examples) == 4
    os.symlink(os.path.join(ROOT, 'data'), tmp_path / 'data')
    program = '\nprint("next")\n'.join(code for code, _ in examples)
    environment = dict(os.environ, PYTHONPATH=ROOT)
    done = run_python('-c', program, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    number = re.compile(r'\d+\.\d+')
    for printed, (_, shown) in zip(done.stdout.split('next\n'), examples):
        assert number.sub('', printed) == number.sub('', shown)
        figures = [[float(text) for text in number.findall(output)] for output in (printed, shown)]
        assert figures[0] == pytest.approx(figures[1], abs=0.1)


@pytest.mark.parametrize('page', PAGES)
def test_a_page_begins_with_a_command_and_its_output(page):
    """The output is a block without a language, or a table."""
    lines = read(page).splitlines()
    start = lines[:12].index('```bash')
    rest = [line for line in lines[lines.index('```', start) + 1 :] if line]
    assert any(line == '```' or line.startswith('| ') for line in rest[:2]), rest[:2]


def test_the_index_names_every_page():
    listed = {
        os.path.normpath(f'docs/{name}') for name in re.findall(r'^\| \[\S+\]\(([^)]+)\)', read('docs/README.md'), re.M)
    }
    assert listed >= {*PAGES, *glob.glob('docs/*.ipynb', root_dir=ROOT)} - {'docs/README.md'}


@pytest.mark.parametrize('document', DOCUMENTS)
def test_links_lead_somewhere(document):
    """Files exist, and a heading that a link names is a heading of the page."""
    for link, heading in re.findall(r'\]\(([^)#\s]*)(?:#([^)\s]+))?\)', read(document)):
        if '://' in link:
            continue
        target = os.path.normpath(os.path.join(os.path.dirname(document), link)) if link else document
        assert os.path.exists(os.path.join(ROOT, target)), (document, link)
        if heading:
            headings = re.findall(r'^#+ (.+)$', read(target), re.M)
            assert heading in [re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-') for text in headings], heading


def test_the_map_of_the_documents_keeps_the_contract(tmp_path):
    """The hook stands in the page without its class."""
    (hook,) = [block for block in blocks('docs/extending.md') if 'torch.cdist' in block]
    (tmp_path / 'methods').mkdir()
    (tmp_path / 'methods' / 'distances.py').write_text(
        'import torch\nfrom fsa_seg.methods.base import Method\nfrom fsa_seg.ops.attention import AttentionMap\n'
        'from fsa_seg.ops.last_block import LastBlock\n\n\nclass Distances(Method):\n    """Distances."""\n\n'
        '    title = "Distances"\n    protocol = "clearclip"\n\n' + textwrap.indent(hook, '    ')
    )
    environment = dict(os.environ, FSA_SEG_CONFIGS=str(tmp_path))
    arguments = ['-m', 'pytest', 'tests/methods/test_contract.py', '-k', 'distances']
    done = run_python(*arguments, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_stage_of_the_documents_runs(tmp_path):
    """It is a method by the page's command, and changes a host's numbers as a stage."""
    (example,) = [block for block in blocks('docs/extending.md') if 'class Smooth' in block]
    (command,) = [block for block in blocks('docs/extending.md', 'bash') if 'smooth.py' in block]
    (tmp_path / 'smooth.py').write_text(example)
    tool = os.path.join(ROOT, 'tools', 'test.py')
    done = run_python(tool, *command.split()[2:], '--out', 'r.json', cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    program = (
        'import fsa_seg\n'
        'methods = ["naclip", dict(type="naclip", stage="smooth.py")]\n'
        'rows = fsa_seg.evaluate("voc20", methods, [False], protocol="clearclip", mini=True, limit=1)\n'
        'print(*[row["row"] for row in rows], rows[0]["mIoU"] != rows[1]["mIoU"])\n'
    )
    done = run_python('-c', program, cwd=tmp_path, env=dict(os.environ, PYTHONPATH=ROOT))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == 'NACLIP NACLIP+Smooth True'
