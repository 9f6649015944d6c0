"""The documents' examples run as they stand."""

import inspect
import json
import os
import re
import subprocess
import sys

import pytest

from fsa_seg.methods.naclip import NACLIP

from conftest import ROOT


def blocks(name, language='python'):
    with open(os.path.join(ROOT, *name.split('/')), encoding='utf-8') as f:
        return re.findall(rf'^```{language}\n(.*?)^```', f.read(), re.M | re.S)


def test_the_method_of_the_documents_keeps_the_contract(tmp_path):
    """It is the same file in both documents, and the command that tests it is the page's."""
    (example,) = [block for block in blocks('docs/extending.md') if 'class ValueCLIP' in block]
    (other,) = [block for block in blocks('README.md') if 'class ValueCLIP' in block]
    assert example.split('from fsa_seg')[1:] == other.split('from fsa_seg')[1:]
    (command,) = [block for block in blocks('docs/extending.md', 'bash') if 'test_contract.py' in block]
    (tmp_path / 'methods').mkdir()
    (tmp_path / 'methods' / 'valueclip.py').write_text(example)
    environment = dict(os.environ, FSA_SEG_CONFIGS=str(tmp_path))
    arguments = command.split(' python ')[1].split()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
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
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
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


def test_links_lead_somewhere():
    for page in ('README.md', 'configs/README.md', 'docs/architecture.md', 'docs/extending.md', 'CONTRIBUTING.md'):
        with open(os.path.join(ROOT, page), encoding='utf-8') as f:
            links = re.findall(r'\]\(([^)#\s]+)', f.read())
        for link in links:
            if '://' not in link:
                assert os.path.exists(os.path.join(ROOT, os.path.dirname(page), link)), (page, link)
