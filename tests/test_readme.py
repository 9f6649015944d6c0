"""The tools' parsers take every command of the documents, every path in the documents exists, the README is short."""

import importlib
import os
import re
import shlex

import pytest

from fsa_seg.cli.main import TOOLS

from conftest import ROOT
from documents import DOCUMENTS, blocks, read

FOLDERS = ('configs', 'constraints', 'data/mini', 'docs', 'fsa_seg', 'tests', 'tools')
NOT_OURS = 'cd done; export for git mkdir mypy pip pre-commit ruff sed source torchrun $EDITOR'.split()
SCRIPTS = {'tools/dist_test.sh': slice(1, 2), 'tools/slurm_test.sh': slice(0, 2)}  # arguments that are not the tool's


def commands(block):
    """Return the commands of a block, without comments, each in its words; a here-document's text is left out."""
    block = re.sub(r"<<'(\w+)'\n.*?^\1$", '', block, flags=re.M | re.S)
    found, text = [], ''
    for line in block.replace('\\\n', ' ').splitlines():
        text += line + '\n'
        try:
            words = shlex.split(text, comments=True)
        except ValueError:  # a quotation goes on in the next line
            continue
        text = ''
        while '&&' in words:
            found.append(words[: words.index('&&')])
            words = words[words.index('&&') + 1 :]
        found.append(words)
    assert not text, text
    return [words for words in found if words]


def tool_of(words):
    """Return the tool of a command and its arguments; the tool is None for a command that is not the suite's."""
    words = [word for word in words if word != '&']
    while re.match(r'[A-Z_]+=', words[0]):  # variables of the environment
        if len(words) == 1 or '$(' in words[0]:
            return None, []
        words = words[1:]
    if words[0] == 'fsa-seg':
        return (words[1], words[2:]) if words[1] in TOOLS else (None, words[1:])
    if '-m' in words and words[words.index('-m') + 1] == 'fsa_seg':
        return tool_of(['fsa-seg', *words[words.index('-m') + 2 :]])
    if words[0] == 'bash':
        arguments = words[2:]
        if words[1] in SCRIPTS:
            tool = 'benchmark' if 'benchmark' in words else 'test'
            taken = SCRIPTS[words[1]]
            del arguments[taken if tool == 'test' else slice(0, taken.stop)]
            return tool, arguments
        return None, arguments
    if words[0] == 'python' and words[1].startswith('tools/'):
        name = os.path.basename(words[1])[:-3]
        return dict(prepare_dataset='prepare').get(name, name), words[2:]
    assert words[0] in (*NOT_OURS, 'python'), words
    return None, words[1:]


COMMANDS = [
    (document, words) for document in DOCUMENTS for block in blocks(document, 'bash') for words in commands(block)
]


@pytest.mark.parametrize(
    'document, words', COMMANDS, ids=lambda value: value if isinstance(value, str) else ' '.join(value)[:60]
)
def test_command(document, words):
    """The tool's parser takes the arguments: argparse exits when it does not know an option."""
    tool, arguments = tool_of(words)
    for word in words:
        path = word.split('::')[0].strip(',')
        if path.startswith(tuple(f'{folder}/' for folder in FOLDERS)):
            assert os.path.exists(os.path.join(ROOT, path)), path
    if tool:
        module = importlib.import_module(f'fsa_seg.cli.{tool}' if tool in TOOLS else tool)
        module.parse_args(arguments)


@pytest.mark.parametrize('document', DOCUMENTS)
def test_paths_in_the_text_exist(document):
    for path in re.findall(r'`([\w.-]+/[\w./-]*)`', read(document)):
        if path.startswith(tuple(f'{folder}/' for folder in FOLDERS)) and 'NAME' not in path:
            assert os.path.exists(os.path.join(ROOT, path)), path


def test_the_glossary_names_things_that_exist():
    """What stands before ` in FILE` is a name in the file."""
    found = re.findall(r'`(\w+)` in `([\w/.]+)`', read('docs/glossary.md'))
    assert len(found) > 5
    for name, path in found:
        assert re.search(rf'\b{name}\b', read(path)), (name, path)


def test_the_readme_is_short_and_begins_with_the_two_commands():
    lines = read('README.md').splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 120
    head = '\n'.join(lines[:30])
    assert 'bash tools/quickstart.sh' in head and 'bash tools/run_tests.sh' in head
