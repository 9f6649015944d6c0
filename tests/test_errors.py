import ast
import os

import pytest
from PIL import Image

from fsa_seg.config.components import load_component
from fsa_seg.datasets.images import read_image
from fsa_seg.errors import UserError, built, one_line

from conftest import ROOT


def raised(make):
    try:
        make()
    except Exception as error:
        return error


def test_an_error_without_a_message_names_its_line():
    def bare():
        raise AssertionError

    assert one_line(raised(bare)).endswith('test_errors.py, line 23: raise AssertionError')
    assert one_line(raised(bare)).startswith('AssertionError in ')
    assert one_line(KeyError('x')) == "KeyError: 'x'" and one_line(EOFError()) == 'EOFError'
    assert one_line(ValueError('a\n  b' + 'c' * 400), 20) == 'ValueError: a bccccc'
    with pytest.raises(UserError, match='^the thing cannot be built: AssertionError in .*: raise AssertionError$'):
        built('the thing', bare)


def test_a_component_or_an_image_that_fails_without_a_message(tmp_path, monkeypatch):
    part = tmp_path / 'mine.py'
    part.write_text('assert 1 > 2\n')
    with pytest.raises(UserError, match='mine.py cannot be read: AssertionError in .*mine.py, line 1: assert 1 > 2$'):
        load_component('vfm', str(part))
    path = str(tmp_path / 'a.png')
    Image.new('RGB', (4, 4)).save(path)

    def fail(*_):
        raise EOFError

    monkeypatch.setattr(Image, 'open', fail)
    with pytest.raises(UserError, match='a.png cannot be decoded: EOFError in .*raise EOFError$'):
        read_image(path)


def test_no_error_of_any_kind_enters_a_message_by_its_text_alone():
    """An error without a message would leave nothing; `one_line` and `!r` name its class."""
    for folder, _, names in os.walk(os.path.join(ROOT, 'fsa_seg')):
        for path in (os.path.join(folder, name) for name in names if name.endswith('.py')):
            with open(path, encoding='utf-8') as f:
                tree = ast.parse(f.read())
            for handler in (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name):
                if not {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} & {
                    'Exception',
                    'BaseException',
                    'EOFError',
                    'UNREADABLE',
                }:
                    continue
                for text in (node for node in ast.walk(handler) if isinstance(node, ast.FormattedValue)):
                    alone = isinstance(text.value, ast.Name) and text.value.id == handler.name and text.conversion < 0
                    shown = ast.unparse(text.value)
                    assert not alone and f'str({handler.name})' not in shown, f'{path}:{text.lineno}'
