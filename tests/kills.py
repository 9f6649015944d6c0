"""Kill the sweep of a toy plan at random times, let it go on, and compare the counts with those of an undisturbed run.

    python tests/kills.py --engine workers --seeds 0-19       # any number of `fsa-seg benchmark --plan FILE`
    python tests/kills.py --engine torchrun --seeds 0-19      # two ranks under torchrun

A line of JSON for each seed says what was killed when, and what was found in the end; the last line sums up. All
numbers but kills, starts and seconds have to be 0. The status is 1 if a number is not.
"""

import argparse
import collections
import contextlib
import glob
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, 'tests')]

from new_process import start_python  # noqa: E402

LIMIT = 10.0  # FSA_SEG_RANK_LIMIT, in seconds
ENDS_IN = 45.0  # seconds in which all processes end when one is lost; a loader's process looks every 5 s
PROTOCOL = """protocol = dict(
    name='quick', default=dict(logit_scale=50, short=112, window=112, stride=112, prob_thd=0.0, area_thd=None),
    datasets=dict(voc21=dict(), cityscapes=dict(), context60=dict(), coco_object=dict()),
)"""  # few windows
KINDS = dict(
    torchrun=('a rank', 'all ranks', 'launcher', 'SIGTERM to the launcher', 'SIGTERM to a rank', 'everything'),
    workers=('a worker', 'all workers', 'SIGTERM to a worker', 'SIGTERM to all', 'a frozen worker'),
)
CHECKED = ('different', 'missing', 'orphans', 'live_claims', 'rewritten', 'wrong_statuses')  # numbers that have to be 0


def make_toy_plan(path, limit, small=False):
    """Write a plan of the toy data, the costliest task of which is split; `small` takes few cells."""
    from fsa_seg.sweep.plan import make_plan, write_plan
    from fsa_seg.system.paths import MINI

    methods, datasets = ('sclip', 'clip', 'proxyclip'), ('voc21', 'cityscapes', 'context60')
    cells = [
        dict(method=method, feedback=feedback, dataset=dataset)
        for dataset in datasets[: 2 if small else 3]
        for method in methods[: 1 if small else 3]
        for feedback in ([None, 'fsa'] if method != 'clip' else [None])
    ]
    protocol = os.path.join(os.path.dirname(path), 'quick.py')
    with open(protocol, 'w') as f:
        f.write(PROTOCOL)
    options = dict(MINI, data_root=os.path.join(ROOT, MINI['data_root']), limit=limit, protocol=protocol)
    plan = make_plan('kills', 'tests/kills.py', cells, options, most=2)
    split = [task._replace(parts=3 if i == 0 else 1) for i, task in enumerate(plan.tasks)]
    plan = plan._replace(tasks=split)
    write_plan(plan, path)
    return plan


def counts(work_dir):
    """Return hash of a cell -> its confusion matrix and the counts of its images, as text."""
    found = {}
    for path in glob.glob(os.path.join(work_dir, 'results', '*.json')):
        with open(path) as f:
            result = json.load(f)
        found[result['hash']] = json.dumps([result['confusion'], result['images'], result['metrics']])
    return found


class Forked:
    """A process of `new_process` with the methods of `subprocess.Popen` that are needed here."""

    def __init__(self, process):
        self._process, self.pid = process, process.pid

    returncode = property(lambda self: self._process.exitcode)

    def poll(self):
        """Return the status of the process, or None while it runs."""
        return self._process.exitcode


class Run:
    """The processes that work on a plan for one seed.

    Args:
        folder: of this seed, with the plan as plan.json.
        engine: a key of KINDS.
        options: of the tool.
        real: whether workers are new interpreters, which takes long, or forked from a server, see `new_process`.
    """

    def __init__(self, folder, engine, options=(), real=True):
        self.folder, self.engine, self.work_dir = folder, engine, os.path.join(folder, 'work')
        self.real, self.started, self.starts = real, [], 0
        self.options = ['--plan', os.path.join(folder, 'plan.json'), '--work-dir', self.work_dir, *options]
        self._seen, self.rewritten = {}, []

    def start(self):
        """Start a worker, or a launcher with two ranks."""
        command = [sys.executable, '-m', 'fsa_seg', 'benchmark', *self.options]
        if self.engine == 'torchrun':
            with socket.socket() as server:
                server.bind(('127.0.0.1', 0))
                port = server.getsockname()[1]
            launch = ['-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={port}', '-m', 'fsa_seg']
            command = [sys.executable, *launch, 'benchmark', *self.options, '--launcher', 'pytorch']
        environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=ROOT, FSA_SEG_RANK_LIMIT=str(LIMIT))
        environment.update(FSA_SEG_CACHE=os.path.join(self.folder, 'cache'))
        logs = [os.path.join(self.folder, f'{name}{self.starts}') for name in ('out', 'log')]
        if self.real or self.engine == 'torchrun':
            with open(logs[0], 'wb') as out, open(logs[1], 'wb') as log:
                process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=out, stderr=log)
        else:
            process = Forked(start_python(*command[1:], cwd=self.folder, env=environment, outputs=logs))
        self.started.append(process)
        self.starts += 1

    def running(self):
        """Return the launchers or workers that run."""
        return [process for process in self.started if process.poll() is None]

    def processes(self):
        """Return the process ids of all processes of this seed; its folder is their present folder."""
        found = []
        for path in glob.glob('/proc/[0-9]*/cwd'):
            with contextlib.suppress(OSError):
                if os.readlink(path) == self.folder:
                    found.append(int(path.split('/')[2]))
        return found

    def ranks(self):
        """Return the process ids of the ranks, once a launcher has started them."""
        launchers = [process.pid for process in self.started]
        return [pid for pid in self.processes() if pid not in launchers and _parent(pid) in launchers]

    def wait(self, seconds):
        """Wait until all processes have ended or the time is over, and look after the files of outcomes meanwhile."""
        deadline = time.monotonic() + seconds
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.05)
            self._look()

    def _look(self):
        """Note the files of outcomes and results that have been written anew."""
        for path in glob.glob(os.path.join(self.work_dir, 'sweep', '*', 'p[0-9]*.json')):
            state = os.stat(path)
            if self._seen.setdefault(path, state.st_ino) != state.st_ino:
                self.rewritten.append(os.path.basename(path))
                self._seen[path] = state.st_ino

    def orphans(self):
        """Return the processes that outlive the launchers and workers; they are ended."""
        deadline = time.monotonic() + ENDS_IN
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        for pid in left:
            _kill(pid, signal.SIGKILL)
        return left

    def live_claims(self):
        """Return the claims whose process, by the text of the claim, still lives."""
        found = []
        for path in glob.glob(os.path.join(self.work_dir, 'sweep', '*', '*.claim')):
            with open(path) as f:
                fields = dict(line.partition('=')[::2] for line in f.read().splitlines())
            if os.path.exists(f'/proc/{fields.get("pid")}'):
                found.append(os.path.basename(path))
        return found

    def strike(self, kind, choose):
        """Kill as a kind says; return whether there was a process to kill."""
        if self.engine == 'torchrun':
            launchers, ranks = [process.pid for process in self.running()], self.ranks()
            victims = dict(zip(KINDS['torchrun'], (ranks[:], ranks, launchers, launchers, ranks[:], self.processes())))
        else:
            workers = [process.pid for process in self.running()]
            victims = dict(zip(KINDS['workers'], (workers[:], workers, workers[:], workers, workers[:])))
        chosen = victims[kind]
        if kind in ('a rank', 'SIGTERM to a rank', 'a worker', 'SIGTERM to a worker', 'a frozen worker'):
            chosen = [choose(sorted(chosen))] if chosen else []
        number = signal.SIGTERM if 'SIGTERM' in kind else signal.SIGSTOP if 'frozen' in kind else signal.SIGKILL
        for pid in chosen:
            _kill(pid, number)
        if 'frozen' in kind:
            self.wait(5)
            for pid in chosen:
                _kill(pid, signal.SIGCONT)
        return bool(chosen)


def _kill(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _parent(pid):
    try:
        with open(f'/proc/{pid}/stat') as f:
            return int(f.read().rpartition(')')[2].split()[1])
    except (OSError, ValueError):
        return None


def disturbed(seed, folder, engine, seconds, expected):
    """Run a plan that is killed at random times, and return what was found.

    Args:
        seed: of the times and kinds.
        folder: of this seed; it holds the plan.
        engine: a key of KINDS.
        seconds: time of an undisturbed run.
        expected: of `counts`.
    """
    draw = random.Random(f'{engine} {seed}')
    run, kills, orphans = Run(folder, engine, ['--workers', str(int(seed % 5 == 0))], real=seed % 4 == 0), [], []
    start = time.monotonic()
    for _ in range(draw.choice([1, 1, 2] if engine == 'torchrun' else [1, 2, 2, 3])):
        while len(run.running()) < (1 if engine == 'torchrun' else draw.choice([2, 3])):
            run.start()
        began = time.monotonic()
        run.wait(draw.uniform(0, seconds))
        kind = draw.choice(KINDS[engine])
        struck = False
        while run.running() and not (struck := run.strike(kind, draw.choice)):
            run.wait(0.2)  # the launcher has not started its ranks
        if not struck:
            continue
        kills.append([kind, round(time.monotonic() - began, 1)])
        if engine == 'torchrun' or 'all' in kind:
            run.wait(ENDS_IN)
            orphans += run.orphans()
    if not run.running():
        run.start()
    run.wait(20 * seconds)
    over = [process.poll() for process in run.started]
    allowed = {0, 1, 75, -signal.SIGKILL, -signal.SIGTERM} if kills else {0}
    if engine == 'workers' or over[-1]:
        run.start()  # prints the table of what is done, and computes nothing
        run.wait(20 * seconds)
    orphans += run.orphans()
    found = counts(run.work_dir)
    return dict(
        seed=seed,
        kills=kills,
        starts=run.starts,
        seconds=round(time.monotonic() - start - seconds, 1),
        statuses=[process.returncode for process in run.started],
        different=sum(found.get(key) != value for key, value in expected.items()),
        missing=len(expected.keys() ^ found.keys()),
        orphans=len(orphans),
        live_claims=len(run.live_claims()),
        rewritten=len(run.rewritten),
        wrong_statuses=sum(status not in allowed for status in over) + (run.started[-1].returncode != 0),
        left=[os.path.basename(path) for path in glob.glob(os.path.join(run.work_dir, 'sweep', '*', '*.claim'))],
        parts=len(glob.glob(os.path.join(run.work_dir, '**', '*.part'), recursive=True)),
        journals=len(glob.glob(os.path.join(run.work_dir, 'logs', '*', 'journal*', '*.jsonl'))),
    )


def undisturbed(folder, engine, limit, small=False):
    """Write a plan, run it by one worker or launcher, and return the seconds and the counts."""
    make_toy_plan(os.path.join(folder, 'plan.json'), limit, small)
    run = Run(folder, engine, ['--workers', '0'], real=False)
    start = time.monotonic()
    run.start()
    run.wait(1200)
    if run.started[0].poll() != 0:
        with open(os.path.join(folder, 'log0')) as f:
            sys.exit(f.read())
    return time.monotonic() - start, counts(run.work_dir)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--engine', choices=KINDS, required=True)
    parser.add_argument('--seeds', default='0-19', help='FIRST-LAST')
    parser.add_argument('--limit', type=int, default=8, help='images of each data set')
    parser.add_argument('--folder', help='of all files, which stay (default: a temporary folder)')
    args = parser.parse_args()
    first, _, last = args.seeds.partition('-')
    with tempfile.TemporaryDirectory() as temporary:
        folder = os.path.realpath(args.folder or temporary)
        os.makedirs(os.path.join(folder, 'undisturbed'), exist_ok=True)
        seconds, expected = undisturbed(os.path.join(folder, 'undisturbed'), args.engine, args.limit)
        print(json.dumps(dict(undisturbed=round(seconds, 1), cells=len(expected))), flush=True)
        rows = []
        for seed in range(int(first), int(last or first) + 1):
            own = os.path.join(folder, f'{args.engine}_{seed}')
            os.makedirs(own)
            shutil.copy(os.path.join(folder, 'undisturbed', 'plan.json'), own)
            if seed % 3:  # else the text embeddings are made under the kills
                shutil.copytree(os.path.join(folder, 'undisturbed', 'cache'), os.path.join(own, 'cache'))
            rows.append(disturbed(seed, own, args.engine, seconds, expected))
            print(json.dumps(rows[-1]), flush=True)
    kinds = collections.Counter(kind for row in rows for kind, _ in row['kills'])
    total = {key: sum(row[key] for row in rows) for key in (*CHECKED, 'starts', 'seconds')}
    print(json.dumps(dict(seeds=len(rows), kills=sum(kinds.values()), kinds=kinds, **total)), flush=True)
    sys.exit(any(total[key] for key in CHECKED))


if __name__ == '__main__':
    main()
