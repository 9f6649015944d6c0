"""Run a plan as a SLURM job array, by submitit: each pass, or part of a pass, is a task of the array.

    fsa-seg plan --suite paper --data-root /data/seg --gpus 64 --out paper.json
    fsa-seg submit paper.json --partition gpu --hours 8 --work-dir W
    fsa-seg status W                                    # from anywhere
    fsa-seg benchmark --plan paper.json --work-dir W    # in the end: verifies the results, and prints the table

Tasks without an outcome are submitted, the costliest first. Before the time limit, and when SLURM preempts a task, the
image in hand ends, and the task is requeued; it goes on from what is counted. A task in which a cell fails ends with
status 1, and the other cells of its pass have their results. The same command submits again what is left.
"""

import argparse
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from fsa_seg.cli.options import add_run_options, place, tool_parser
from fsa_seg.system.stopping import CONTINUED

MOST_TASKS = 1000  # tasks of an array: SLURM's own limit, MaxArraySize, is 1001 unless the site has set another
MOST_LIMITS = 100  # time limits that a task may reach before it is requeued no more
SIGNAL_DELAY = 120  # seconds before the time limit at which SLURM sends SIGUSR2: the image in hand ends in them
LINGER = 300.0  # seconds that an ended task stays after SIGTERM: SLURM requeues a preempted task only if it still runs
PORTS = range(20000, 32000)  # below the ports that Linux gives out by itself
FLAGS = ('compile', 'save_labels', 'verbose')  # of `add_run_options`, without a value


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = tool_parser('submit', __doc__)
    parser.add_argument('plan', type=place, metavar='PLAN', help='file of fsa-seg plan')
    parser.add_argument('--partition', metavar='P', help='SLURM partition')
    parser.add_argument('--account', metavar='A', help='SLURM account')
    parser.add_argument('--qos', metavar='Q', help='quality of service')
    parser.add_argument('--constraint', metavar='C', help='features of the nodes, such as a100')
    parser.add_argument('--gpus', type=int, default=1, metavar='N', help='GPUs of a task, on one node (default: 1)')
    parser.add_argument('--cpus', type=int, default=8, metavar='N', help='CPU cores of each GPU (default: 8)')
    parser.add_argument('--memory', type=float, metavar='GB', help="memory of a task (default: the cluster's)")
    parser.add_argument('--hours', type=float, default=12, metavar='H', help='time limit of a task (default: 12)')
    parser.add_argument(
        '--array-parallelism', type=int, metavar='N', help='tasks that run at once (default: 256; local: 1)'
    )
    parser.add_argument(
        '--no-requeue',
        dest='requeue',
        action='store_false',
        help='let a task end with status 75 at its time limit or when it is preempted',
    )
    parser.add_argument(
        '--slurm',
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help='another option of sbatch, such as exclude=node7, or exclusive without a value; may be repeated',
    )
    parser.add_argument(
        '--setup',
        action='append',
        default=[],
        metavar='CMD',
        help="a line of shell before a task, such as 'module load cuda'; may be repeated",
    )
    parser.add_argument('--data-root', type=place, metavar='DIR', help="in place of the plan's folder of data sets")
    add_run_options(parser)
    parser.add_argument('--retry', action='store_true', help='run again what has failed')
    parser.add_argument(
        '--executor', choices=['slurm', 'local'], default='slurm', help='local: run the tasks here, as a test'
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    from fsa_seg.config.runtime import default_runtime
    from fsa_seg.sweep.plan import read_plan
    from fsa_seg.sweep.worker import Worker

    plan = read_plan(args.plan)
    check_args(args)
    args.work_dir = os.path.abspath(args.work_dir or default_runtime()['work_dir'])
    worker = Worker(plan, plan.tasks, args.work_dir, retry=args.retry)
    kept = os.path.join(worker.folder, 'plan.json')  # a queued task outlives a change of the user's file
    tasks = [ArrayTask(task_arguments(args, kept, name), args.requeue) for name in worker.open_units()]
    if not tasks:
        print(f'every task of {args.plan} has an outcome; --retry submits again what has failed')
    elif args.executor == 'slurm':
        executor = make_executor(args, os.path.join(worker.folder, 'slurm'))
        for start in range(0, len(tasks), MOST_TASKS):
            submit_array(executor, tasks[start : start + MOST_TASKS])
    else:
        run_here(make_executor(args, os.path.join(worker.folder, 'slurm')), tasks, args.array_parallelism or 1)
    verify = ['fsa-seg', 'benchmark', '--plan', args.plan, *run_arguments(args)]
    print(shlex.join(['fsa-seg', 'status', args.work_dir]) + '    # how far it is, from anywhere')
    print(shlex.join(verify) + '    # in the end: verifies the results, and prints the table')


def check_args(args: argparse.Namespace) -> None:
    """Raise a UserError if a number is out of range, or if submitit or SLURM is not there."""
    from fsa_seg.errors import UserError

    for name, least in (('gpus', 0), ('cpus', 1), ('array_parallelism', 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise UserError(f'--{name.replace("_", "-")} is {getattr(args, name)}; it has to be at least {least}')
    for name in ('hours', 'memory'):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < math.inf:
            raise UserError(f'--{name} is {getattr(args, name)}; it has to be above 0')
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError('fsa-seg submit needs submitit: pip install submitit') from None
    if args.executor == 'slurm' and not (shutil.which('sbatch') and shutil.which('srun')):
        raise UserError(
            'sbatch or srun is not on PATH: run fsa-seg submit on a login node of the cluster; --executor local runs '
            'the tasks on this machine'
        )


def run_arguments(args: argparse.Namespace) -> list[str]:
    """Return the options of `fsa-seg benchmark` that the tasks and the last command have in common."""
    given = ['--work-dir', args.work_dir]
    for name in ('data_root', 'workers', 'batch_size', 'window_batch'):
        if getattr(args, name) is not None:
            given += [f'--{name.replace("_", "-")}', str(getattr(args, name))]
    return given + [f'--{name.replace("_", "-")}' for name in FLAGS if getattr(args, name)]


def task_arguments(args: argparse.Namespace, plan: str, unit: str) -> list[str]:
    """Return the arguments of Python that run a unit of the plan in a file."""
    launcher = ['--launcher', 'slurm'] if args.gpus > 1 else []
    return [
        '-m',
        'fsa_seg',
        'benchmark',
        '--plan',
        plan,
        '--task',
        unit,
        '--keep-going',
        *launcher,
        *run_arguments(args),
    ]


def make_executor(args: argparse.Namespace, folder: str) -> Any:
    """Return submitit's executor, which keeps scripts, pickles and logs in a folder."""
    import submitit

    from fsa_seg.errors import UserError
    from fsa_seg.system.machine import PACKAGE, ROOT

    python, setup, source = shlex.quote(sys.executable), list(args.setup), os.path.dirname(PACKAGE)
    if source == ROOT:  # a clone, which may not be installed
        paths = os.pathsep.join(filter(None, [source, os.environ.get('PYTHONPATH')]))
        python = f'env PYTHONPATH={shlex.quote(paths)} {python}'
        setup.append(f'export PYTHONPATH={shlex.quote(source)}${{PYTHONPATH:+:$PYTHONPATH}}')
    executor = submitit.AutoExecutor(
        folder, args.executor, slurm_max_num_timeout=MOST_LIMITS, local_max_num_timeout=MOST_LIMITS, local_python=python
    )
    more = {'requeue': True} if args.requeue else {'no_requeue': True}
    for text in args.slurm:
        name, equals, value = text.partition('=')
        key = name.strip().lstrip('-').replace('-', '_')  # submitit's names, so that a key replaces an option's value
        if not key:
            raise UserError(f'--slurm {text!r} is not KEY=VALUE, such as exclude=node7')
        more[key] = value if equals else True
    executor.update_parameters(
        name='fsa_seg',
        timeout_min=math.ceil(args.hours * 60),
        mem_gb=args.memory,
        nodes=1,
        tasks_per_node=max(args.gpus, 1),
        gpus_per_node=args.gpus or None,
        cpus_per_task=args.cpus,
        stderr_to_stdout=True,
        slurm_partition=args.partition,
        slurm_account=args.account,
        slurm_qos=args.qos,
        slurm_constraint=args.constraint,
        slurm_array_parallelism=args.array_parallelism,
        slurm_signal_delay_s=SIGNAL_DELAY,
        slurm_setup=setup,
        slurm_srun_args=[f'--cpus-per-task={args.cpus}'],  # which srun has not taken from sbatch since SLURM 22.05
        slurm_additional_parameters=more,
        local_setup=args.setup,
    )
    return executor


def submit_array(executor: Any, tasks: Sequence['ArrayTask']) -> None:
    """Submit tasks as one job array, and print its id.

    Raises:
        UserError: SLURM refuses the array.
    """
    from submitit.core.utils import FailedSubmissionError, UncompletedJobError

    from fsa_seg.errors import UserError, one_line

    try:
        jobs = executor.submit_array(tasks)
    except (FailedSubmissionError, UncompletedJobError) as error:
        raise UserError(f'sbatch refuses the job array: {one_line(error)}') from None
    array, _, index = jobs[0].job_id.partition('_')
    print(
        f'job array {array}: {len(tasks)} tasks' if index else f'job {array}: 1 task',
        f'logs: {executor.folder}',
        sep='; ',
    )


def run_here(executor: Any, tasks: Sequence['ArrayTask'], most: int) -> None:
    """Run tasks on this machine, `most` at a time."""
    left, running = list(tasks), []
    while left or running:
        running = [job for job in running if not job.done()]
        while left and len(running) < most:
            running.append(executor.submit(left.pop(0)))
        time.sleep(0.1)
    print(f'{len(tasks)} tasks have ended; logs: {executor.folder}')


class ArrayTask:
    """Runs Python with arguments in a process of its own; submitit calls the object in each process of a task.

    The process ends after the image in hand, with status 75, when SLURM sends SIGTERM or SIGUSR2. After SIGUSR2, which
    comes before the time limit, submitit calls `checkpoint` and requeues the task.

    Args:
        arguments: of Python.
        requeue: whether the task goes on in another run of the job.
    """

    def __init__(self, arguments: Sequence[str], requeue: bool):
        self.arguments, self.requeue = list(arguments), requeue
        self._process, self._stopped = None, False

    def __call__(self) -> None:
        """Run the process; a status other than 0 ends this process with the same status, so that sacct shows it."""
        import submitit

        here = submitit.JobEnvironment()
        signal.signal(signal.SIGTERM, lambda number, frame: self._stop())  # in place of submitit's, which ignores it
        self._process = subprocess.Popen(
            [sys.executable, *self.arguments],
            env={**os.environ, **rank_variables(here)},
            preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),  # some sites signal all processes
        )
        try:
            status = self._wait()
            if status == CONTINUED and self.requeue and here.cluster == 'slurm':
                time.sleep(LINGER)
        except KeyboardInterrupt:
            self._stop()
            raise
        if status:
            sys.exit(status)

    def checkpoint(self) -> Any:
        """End the process after the image in hand, and return what submitit runs when the task goes on.

        submitit calls the method in the handler of SIGUSR2. If the process is done, this process ends, too.
        """
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._stop()
            status = self._wait()
            if status != CONTINUED or not self.requeue:
                sys.exit(status)
        return DelayedSubmission(ArrayTask(self.arguments, self.requeue))

    def _stop(self):
        """Ask the process once to end: a second request would end it in the midst of an image."""
        if self._process is not None and not self._stopped:
            self._stopped = True
            os.kill(self._process.pid, signal.SIGTERM)

    def _wait(self):
        """Return the status of the process; a handler of a signal may wait while the interrupted code waits, too."""
        end = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)  # `Popen.wait` has a lock
        if end.si_code == os.CLD_EXITED:
            return end.si_status
        return CONTINUED if end.si_status == signal.SIGTERM else 128 + end.si_status


def rank_variables(here: Any) -> dict[str, str]:
    """Return the variables of `--launcher slurm` for a process of a task on one node; none of a task of one process.

    Args:
        here: submitit's environment of the job. The port follows from the job's id: tasks share nodes.
    """
    if here.num_tasks == 1:
        return {}
    port = PORTS[(7 * int(here.raw_job_id) + int(os.environ.get('SLURM_RESTART_COUNT', 0))) % len(PORTS)]
    return dict(
        SLURM_PROCID=str(here.global_rank),
        SLURM_NTASKS=str(here.num_tasks),
        SLURM_LOCALID=str(here.local_rank),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
    )
