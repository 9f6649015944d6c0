"""The documents, for the tests that hold them to the code."""

import glob
import os
import re

from conftest import ROOT

PAGES = sorted(glob.glob('docs/*.md', root_dir=ROOT))
DOCUMENTS = ['README.md', 'CONTRIBUTING.md', 'configs/README.md', 'data/README.md', 'data/mini/README.md', *PAGES]


def read(name):
    """Return the text of a document; its name is the path below the repository."""
    with open(os.path.join(ROOT, *name.split('/')), encoding='utf-8') as f:
        return f.read()


def blocks(name, language='python'):
    """Return the code blocks of a language in a document."""
    return re.findall(rf'^ *```{language}\n(.*?)^ *```', read(name), re.M | re.S)
