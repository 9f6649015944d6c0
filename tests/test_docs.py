"""The documents' examples run as they stand."""

import inspect
import os
import re
import subprocess
import sys

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
