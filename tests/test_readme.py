"""The tools' parsers take every command of the documents, and every path in the documents exists."""

import importlib
import os
import re
import shlex

import pytest

from conftest import ROOT

DOCUMENTS = ('README.md', 'configs/README.md', 'data/README.md', 'data/mini/README.md')
COMMANDS = [
    (document, line.split('  #')[0].strip())
    for document in DOCUMENTS
    for block in re.findall(r'```bash\n(.*?)```', open(os.path.join(ROOT, document)).read(), re.S)
    for line in block.replace('\\\n', ' ').splitlines()
    if line.strip()
]


@pytest.mark.parametrize('document, command', COMMANDS)
def test_command(document, command, monkeypatch, capsys):
    words = [word for word in shlex.split(command) if not re.match(r'[A-Z_]+=', word)]
    tool = next((word for word in words if word.startswith('tools/')), None)
    if tool is None:
        assert words[0] in ('source', 'sed'), command
        return
    assert os.path.exists(os.path.join(ROOT, tool)), command
    arguments = words[words.index(tool) + 1 :]
    if tool == 'tools/dist_test.sh':
        arguments = arguments[:1] + arguments[2:]
    elif tool == 'tools/slurm_test.sh':
        arguments = arguments[2:]
    if tool in ('tools/dist_test.sh', 'tools/slurm_test.sh'):
        tool = 'tools/test.py'
    if not tool.endswith('.py'):
        return
    for argument in arguments:
        if argument.startswith('configs/'):
            assert os.path.exists(os.path.join(ROOT, argument)), argument
    module = importlib.import_module(os.path.basename(tool)[:-3])
    module.parse_args(arguments)  # argparse exits when it does not know an option


@pytest.mark.parametrize('document', DOCUMENTS)
def test_links(document):
    text = open(os.path.join(ROOT, document)).read()
    for target in re.findall(r'\]\(([^)#:]+)\)', text):
        assert os.path.exists(os.path.join(ROOT, os.path.dirname(document), target)), target


def test_the_first_screen_has_the_two_commands():
    head = open(os.path.join(ROOT, 'README.md')).read().splitlines()[:30]
    assert 'bash tools/quickstart.sh' in '\n'.join(head) and 'bash tools/run_tests.sh' in '\n'.join(head)
