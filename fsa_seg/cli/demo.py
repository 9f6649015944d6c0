"""Open a web page on this machine: segment pictures by several methods side by side, with and without FSA.

fsa-seg demo                                    # the models of the paper; without their weights the toy models
fsa-seg demo --mini                             # the toy models, which ship with the code
fsa-seg demo --backbone clip_vit-l14 --open     # opens the browser
fsa-seg demo --results work_dirs/results        # and the page shows what a benchmark has found

The page answers this machine alone, unless --host says otherwise. Pictures and words stay in memory.
"""

import argparse
import contextlib
import importlib.util
import signal
import socket
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fsa_seg.cli.options import add_random_weights, place, tool_parser

if TYPE_CHECKING:
    from fsa_seg.apps.demo.comparison import Comparison
    from fsa_seg.apps.demo.results import ResultsFolder

BACKBONE = 'clip_vit-b16'  # of the paper
MISSING = (
    f'The weights of {BACKBONE} are not on this machine, so that the page starts with the toy models. Get the '
    f'weights by fsa-seg weights get {BACKBONE} dino_vit-b8'
)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = tool_parser('demo', __doc__)
    parser.add_argument('--mini', action='store_true', help='the toy models, which know the toy world alone')
    parser.add_argument('--backbone', metavar='B', help=f'CLIP image tower (default: {BACKBONE})')
    parser.add_argument('--vfm', metavar='V', help='VFM of the methods that have one (default: the published one)')
    parser.add_argument('--protocol', metavar='P', default='proxyclip', help='of all rows (default: proxyclip)')
    parser.add_argument('--precision', metavar='P', default='auto', help='auto, fp32, fp16 or bf16 (default: auto)')
    add_random_weights(parser, 'they show what a backbone costs')
    parser.add_argument('--port', type=int, default=7860, metavar='P', help='default: 7860; 0 takes any free port')
    parser.add_argument(
        '--host', default='127.0.0.1', metavar='H', help='address to listen at (default: 127.0.0.1, this machine alone)'
    )
    parser.add_argument(
        '--results', nargs='+', type=place, metavar='DIR', help='folders of results, which the page shows by image'
    )
    parser.add_argument('--data-root', type=place, metavar='DIR', help='folder of the data sets of these results')
    parser.add_argument('--open', action='store_true', help='open the page in the browser')
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    check_gradio()
    from fsa_seg.apps.demo.server import LOOPBACK, Server, bind, make_app

    listener = bind(args.host, args.port)  # before the models: a taken port is known at once
    toy = not args.mini and lacks_weights(args)
    engine, results = make_engine(args, toy), read_results(args)
    app = make_app(
        engine, results, note=MISSING if toy else None, names=[args.host.lower(), socket.gethostname().lower()]
    )
    for line in (
        toy and MISSING,
        engine.note,
        args.host not in LOOPBACK and 'everybody whose browser reaches this machine can use the page',
    ):
        if line:
            print(line)
    with Server(app, listener) as server, ended() as end:
        print(f'the page is at {server.url} (Ctrl-C ends it)', flush=True)
        if args.open:
            webbrowser.open(server.url)
        end.wait()


def check_gradio() -> None:
    """Raise a UserError if gradio is not installed."""
    from fsa_seg.errors import UserError

    if importlib.util.find_spec('gradio') is None:
        raise UserError("fsa-seg demo needs gradio: pip install 'fsa-seg[demo]'; in a clone: pip install -e '.[demo]'")


def lacks_weights(args: argparse.Namespace) -> bool:
    """Return whether the user named no backbone, and the default backbone's weights are not on this machine."""
    if args.backbone is not None or args.random_weights is not None:
        return False
    from fsa_seg.config.components import load_component
    from fsa_seg.models.weights import path_of, weights_from

    return path_of(weights_from('backbone', load_component('backbone', BACKBONE))) is None


def make_engine(args: argparse.Namespace, toy: bool) -> 'Comparison':
    """Return the engine of the page; its models load with the first request."""
    from fsa_seg.apps.demo.comparison import Comparison
    from fsa_seg.system.paths import MINI

    parts = dict(backbone=BACKBONE, vfm=None) if not (args.mini or toy) else MINI
    return Comparison(
        args.backbone or parts['backbone'],
        args.vfm or parts['vfm'],
        args.protocol,
        args.precision,
        random_weights=args.random_weights,
    )


def read_results(args: argparse.Namespace) -> 'ResultsFolder | None':
    """Return the results of --results; None without the option."""
    if not args.results:
        return None
    from fsa_seg.apps.demo.results import ResultsFolder

    return ResultsFolder(args.results, args.data_root)


@contextlib.contextmanager
def ended() -> Iterator[threading.Event]:
    """Set an event when Ctrl-C or SIGTERM comes, in place of what they do otherwise."""
    end = threading.Event()
    before = {number: signal.signal(number, lambda *_: end.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
