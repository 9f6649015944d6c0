"""List what can be named on the command line, a line each; files of FSA_SEG_CONFIGS are listed with their path.

fsa-seg list             # all
fsa-seg list backbones   # of methods, backbones, vfms, protocols, datasets, suites, feedback
"""

import argparse
import ast
import os
import re
from collections.abc import Sequence

from fsa_seg.cli.options import tool_parser
from fsa_seg.errors import one_line, one_of
from fsa_seg.system.paths import component_files

FOLDERS = ('methods', 'backbones', 'vfms', 'protocols', 'datasets', 'suites', 'feedback')


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = tool_parser('list', __doc__)
    parser.add_argument('kind', nargs='?', metavar='KIND', help=f'of {", ".join(FOLDERS)} (default: all)')
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    for folder in [one_of(args.kind, FOLDERS, 'kind')] if args.kind else FOLDERS:
        if not args.kind:
            print(f'\n{folder}')
        print_kind(folder)


def print_kind(folder: str) -> None:
    """Print a line for each component of a kind: name, first sentence about it, and the path of a user's own file."""
    shipped = component_files(folder, users=False)
    files = component_files(folder)
    if folder == 'methods':
        from fsa_seg.methods import method_files

        shipped, files = method_files(users=False), method_files()
    width = max(map(len, files), default=0)
    for name in sorted(files):
        own = '' if name in shipped else f'  [{os.path.relpath(files[name])}]'
        print(f'  {name:{width}}  {about(files[name])}{own}')


def about(path: str) -> str:
    """Return the first sentence of a file's docstring, or else of the comment at its head."""
    try:
        with open(path, encoding='utf-8') as f:
            text = f.read()
        words = ast.get_docstring(ast.parse(text))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        return f'cannot be read: {one_line(error)}'
    if not words:
        lines = text.splitlines()
        end = next((i for i, line in enumerate(lines) if not line.startswith('#')), len(lines))
        words = ' '.join(line.lstrip('# ') for line in lines[:end])
    return re.split(r'(?<=[.?]) ', ' '.join(words.split()))[0].rstrip('.')
