"""`fsa-seg NAME [options]`: one command for all tools. `python -m fsa_seg` and a clone's tools/NAME.py are the same."""

import importlib
import sys
from collections.abc import Sequence

from fsa_seg import __version__
from fsa_seg.cli.tool import leave, run_tool
from fsa_seg.errors import UserError, one_of

TOOLS = dict(
    test='evaluate one cell: a method on a data set',
    benchmark='run a suite of cells, and print its table',
    plan='plan a suite for many GPUs, and estimate what it costs',
    submit='run a plan as a SLURM job array',
    status='show how far a benchmark is, from anywhere',
    report='make a report of results: tables, intervals, where each gain comes from',
    compare='compare two results: figures, interval, and all that differs',
    segment='segment one picture into the classes that you name',
    demo='open a web page: methods side by side on a picture, and why',
    prepare="make data sets of their publishers' files, and check them",
    weights='list, download and check the weights of backbones and VFMs',
    measure='measure the costs on this machine',
    doctor='report this machine, and check that the suite computes right here',
    list='list methods, backbones, VFMs, protocols, data sets, suites',
)
HIDDEN = ('launch',)  # tools that scripts call
# `segment` has one picture, and `demo` waits; `leave` then saves the time in which libraries are unloaded
GIVES_MEMORY_BACK = ('segment', 'demo')


def usage() -> str:
    """Return the help of the command."""
    lines = [f'  {name:10} {about}' for name, about in TOOLS.items()]
    return '\n'.join(
        [
            f'fsa-seg {__version__}: training-free open-vocabulary segmentation with CLIP',
            '',
            'usage: fsa-seg TOOL [options]',
            '',
            *lines,
            '',
            'fsa-seg TOOL --help has the options of a tool. A first run, with what ships: fsa-seg test voc21 --mini',
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run a tool with its arguments, by default those of the command line; the process ends with the tool's status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ('-h', '--help'):
        print(usage())
        sys.exit(0 if argv else 2)
    if argv[0] == '--version':
        print(__version__)
        return
    name, *arguments = argv
    try:
        one_of(name, (*TOOLS, *HIDDEN), 'tool')
    except UserError as error:
        sys.exit(f'error: {error}')
    module = importlib.import_module(f'fsa_seg.cli.{name}')
    if name in HIDDEN:
        return module.main(arguments)
    run_tool(lambda: module.main(arguments), keep=name not in GIVES_MEMORY_BACK)
    if name in GIVES_MEMORY_BACK:
        leave()


if __name__ == '__main__':
    main()
