"""The notebook of the documents runs from its first cell to its last, and prints what it shows."""

import os
import re

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import ROOT

NUMBER = re.compile(r'\d+\.\d+')


def outputs(notebook):
    """Return what the cells print and return, without their pictures, as one text; and the number of pictures."""
    found = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    texts = [output['text'] for output in found if output.get('name') == 'stdout']
    data = [output['data'] for output in found if 'data' in output]
    texts += [values['text/plain'] for values in data if 'image/png' not in values]
    return '\n'.join(texts), sum('image/png' in values for values in data)


def test_the_notebook(tmp_path):
    notebook = nbformat.read(os.path.join(ROOT, 'docs', 'tour.ipynb'), 4)
    shown, pictures = outputs(notebook)
    resources = dict(metadata=dict(path=str(tmp_path)))
    NotebookClient(notebook, timeout=300, kernel_name='python3', resources=resources).execute()
    printed, drawn = outputs(notebook)
    assert NUMBER.sub('', printed) == NUMBER.sub('', shown) and drawn == pictures == 2
    assert [float(text) for text in NUMBER.findall(printed)] == pytest.approx(
        [float(text) for text in NUMBER.findall(shown)], abs=0.15
    )
