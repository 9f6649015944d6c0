"""Workers: each takes the tasks of a plan that no other worker has, and writes what became of them.

WORK_DIR/sweep/PLAN holds the plan, and of each unit, a task or a part of its images:

    precision     in which the plan runs, if the plan leaves that to its first worker
    NAME.claim    the worker that runs it: a lease, which ends with its process
    NAME.json     the outcome: results, failures with their reasons, time
    workers/*     what each worker is doing, for `fsa-seg status`
"""

import contextlib
import os
import secrets
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from filelock import Timeout
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process

from fsa_seg.errors import Busy, StopError, UserError, one_line, one_of, reason
from fsa_seg.evaluation.loop import TaskLost, Watch
from fsa_seg.evaluation.passes import (
    check_cells,
    check_roots,
    forget_checks,
    kept_results,
    named_result,
    prepare,
    result_path,
    run_apart,
)
from fsa_seg.evaluation.ranks import check_shared, on_all, on_main
from fsa_seg.evaluation.results import write_result
from fsa_seg.models.kept import kept_models
from fsa_seg.models.segmentor import resolve_precision
from fsa_seg.ops.device import device_name
from fsa_seg.sweep.plan import Plan, Task, read_plan, write_plan
from fsa_seg.sweep.state import (
    DONE,
    FAILED,
    Progress,
    Running,
    cell_name,
    progress,
    read_outcome,
    sweep_folder,
    write_outcome,
)
from fsa_seg.system.leases import DURATION, lease
from fsa_seg.system.paths import find_root, make_folder, sources_digest
from fsa_seg.system.progress import Bar, note

WAIT = 'wait'  # in place of a unit: other workers run all that is left
POLL = 2.0  # seconds between two looks for a free unit
PER_CLAIM = 0.5  # seconds by which the looks at claimed units are further apart, for each such unit
GRACE = 30.0  # seconds that a worker of one unit waits beyond a lease's duration: the owner then lives
VERIFICATIONS = 3  # rounds of runs after which all results should stand
BUSY = 30.0  # seconds until the next try of a unit with a cell that another run works on
LINE = 'cells: {n_fmt}/{total_fmt} |{bar:20}| [{elapsed}{postfix}]'  # passes differ too much for a time by cells
REPORT = 10.0  # seconds between two reports of a worker


class Worker(Watch):
    """Runs the units of a plan; all processes of a run call it alike, and the main process takes the units.

    Args:
        plan: the plan.
        tasks: of the plan, that this worker may run.
        work_dir: folder of results, shared by all workers of the plan.
        data_root: in place of the plan's.
        runtime: entries of configs/runtime.py.
        keep_going: whether to go on after a failure.
        retry: whether to run again what has failed before this worker began.
        force: whether to run again what is done.
        only: name of the one unit to run. The worker makes the results of a split pass, too, if this was its last part.
            It waits for another worker that holds the unit or the pass just until that worker has shown that it lives.
            Without `only`, the worker waits in the end for what other workers run, and takes over what they lose.

    Attributes:
        failures (dict): name of a cell -> reason, of this worker.
    """

    def __init__(
        self,
        plan: Plan,
        tasks: Sequence[Task],
        work_dir: str,
        data_root: str | None = None,
        runtime: Mapping[str, Any] | None = None,
        keep_going: bool = False,
        retry: bool = False,
        force: bool = False,
        only: str | None = None,
    ):
        self.plan, self.keep_going, self.force = plan, keep_going, force
        self.options = {} if data_root is None else dict(data_root=data_root)
        self.runtime, self.folder = dict(runtime or {}, work_dir=work_dir), sweep_folder(work_dir, plan)
        self.failures = {}
        self._units = {name: (task, part) for task in tasks for name, part in task.units()}
        self._only = only
        if only is not None:
            task, part = self._units[one_of(only, self._units, 'task')]
            self._units = {only: (task, part), task.name: (task, None)}
        self._outcomes, self._leases, self._looks, self._forced, self._read = {}, {}, {}, set(), {}
        self._unit, self._evaluated, self._reported, self._start = None, 0, 0.0, 0.0
        self._held_since = None  # of `only`: when this worker first saw that another holds what it waits for
        on_main(lambda: self._open(retry))

    def _open(self, retry):
        """Make the folders, keep the plan, and forget failures that are to be run again."""
        make_folder(os.path.join(self.folder, 'workers'))
        path = os.path.join(self.folder, 'plan.json')
        with contextlib.suppress(UserError):
            if read_plan(path).id == self.plan.id:
                path = None
        if path:
            write_plan(self.plan, path)
        failed = {task.name: task for name, (task, _) in self._units.items() if self._outcome(name) == FAILED}
        for task in failed.values() if retry else ():
            self._forget(task)

    def open_units(self) -> list[str]:
        """Return the names of the units without an outcome, the costliest first.

        A split pass itself counts only when its parts are over: the worker of the last part runs the pass, too.
        """
        names = [
            (-task.flops / task.parts if part or task.parts == 1 else 0.0, name)
            for name, (task, part) in self._units.items()
            if self._outcome(name) is None and (part or self._parts_over(task))
        ]
        return [name for _, name in sorted(names, key=lambda pair: pair[0])]

    def _configs(self, task):
        """Return the composed configs of a task's cells, in the precision of the plan; all processes call it alike."""
        self._decide()
        return self.plan.configs(task, self.options, self.runtime)

    def _decide(self):
        """Set the precision; not before cells run or are read: the tool that submits workers may have no GPU."""
        if 'precision' not in self.options:
            self.options['precision'] = on_main(self._precision)

    def _precision(self):
        """Return the precision of the plan; where the plan leaves it open, the first worker's machine decides it."""
        planned = self.plan.options.get('precision', 'auto')
        if planned != 'auto':
            return planned
        path, own = os.path.join(self.folder, 'precision'), os.path.join(self.folder, f'.{secrets.token_hex(8)}')
        with open(own, 'w', encoding='utf-8') as f:
            f.write(resolve_precision('auto'))
        try:
            os.link(own, path)  # complete, and for one worker alone
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not os.path.exists(path):
                os.replace(own, path)
        with contextlib.suppress(FileNotFoundError):
            os.remove(own)
        with open(path, encoding='utf-8') as f:
            return f.read()

    def _check_device(self):
        """Raise a StopError if the first worker's machine chose a precision that this machine would not choose."""
        self._decide()
        here, chosen = resolve_precision('auto'), self.options['precision']
        if self.plan.options.get('precision', 'auto') == 'auto' and chosen != here:
            raise StopError(
                f'the cells of this plan run in {chosen}, by the machine of the first worker; here they would run in '
                f'{here}. Start workers on machines of one kind, or plan with --precision {chosen}'
            )

    def _forget_absent(self, tasks, cells, kept):
        """Forget the tasks that are over, or have failed, and whose results are not all kept.

        Args:
            tasks: of the plan.
            cells: of all tasks, in order.
            kept: of `check_cells`.
        """
        paths = iter(map(result_path, cells))
        for task in tasks:
            absent = {next(paths) for _ in task.cells} - set(kept)
            states = [self._outcome(name) for name, _ in task.units()]
            if absent and (FAILED in states or states[-1] is not None):
                self._forget(task)

    def _forget(self, task):
        """Remove the outcomes of a task and its parts, so that it runs again."""
        for name, _ in task.units():
            self._outcomes.pop(name, None)
            self._forced.discard(name)
            with contextlib.suppress(FileNotFoundError):
                os.remove(self._path(name))

    def run(self) -> Progress:
        """Run units until none is left, and return the progress of the plan.

        Raises:
            StopError: the machine cannot go on, such as at a full disk.
        """
        self._report_path = os.path.join(self.folder, 'workers', f'{socket.gethostname()}_{os.getpid()}.json')
        cells = sum(len(task.cells) for task in self.plan.tasks)
        try:
            with kept_models(), Bar(total=cells, disable=not is_main_process(), bar_format=LINE) as self._bar:
                while (name := on_main(self._next)) is not None:
                    if name == WAIT:
                        time.sleep(POLL)
                    else:
                        self._run(name)
                    if self.failures and not self.keep_going:
                        break
        except OSError as error:
            raise StopError(f'{self.folder} cannot be used: {one_line(error)}; the same command goes on') from error
        finally:
            for held in self._leases.values():
                held.release()
            if is_main_process():
                with contextlib.suppress(OSError):
                    os.remove(self._report_path)
        return on_main(lambda: progress(self.plan, self.folder, self._read))

    def check_cells(self) -> None:
        """Check the data and the models of all tasks before the first one runs, see `passes.check_cells`.

        What is done by results that are gone, or stale by now, and what has failed, runs again.
        """
        tasks = {task.name: task for task, _ in self._units.values()}
        configs = {name: self._configs(task) for name, task in tasks.items()}
        most = max(len(task.cells) for task in self.plan.tasks)
        cells, kept, _ = check_cells(sum(configs.values(), []), self.force, most)
        on_main(lambda: self._forget_absent(tasks.values(), cells, kept))

    def complete(self) -> tuple[Progress, list[dict[str, Any]] | None]:
        """Run until no unit is left, and verify the results.

        Returns:
            The progress of the plan; and see `verified`. There are no results after a failure without `keep_going`,
            while other workers run units, for a single unit, and while another worker verifies.
        """
        for _ in range(VERIFICATIONS):
            found = self.run()
            over = on_main(lambda: all(self._outcome(name) is not None for name in self._units))
            if not over or self._only or self.failures and not self.keep_going:
                return found, None
            table = lease(os.path.join(self.folder, 'table.claim'))
            if not on_main(lambda: _taken(table)):  # noqa: B023
                return found, None
            try:
                results = self.verified()
            finally:
                if is_main_process():
                    table.release()
            if results is not None:
                return found, results
        raise StopError(
            f'results were stale {VERIFICATIONS} times right after their cells had run: does another worker run other '
            'code, or do data or weights change? Start all workers from one version'
        )

    def verified(self) -> list[dict[str, Any]] | None:
        """Return the results of the tasks, in the order of the plan's cells, without those of failed cells.

        A task whose results are gone, or are stale by now, loses its outcome, so that `run` runs the task again.

        Returns:
            The results on the main process; None if a task has to run.
        """
        results, tasks = {}, {task.name: task for task, _ in self._units.values()}
        forget_checks()
        for task in tasks.values():
            failures = on_main(lambda: self._failures_of(task))  # noqa: B023
            configs = self._configs(task)
            cells = {i: prepare(config) for i, config in zip(task.cells, configs) if i not in failures}
            kept = {}
            on_main(lambda: kept.update(kept_results(list(cells.values()))))  # noqa: B023
            results.update((i, kept[path]) for i, cell in cells.items() if (path := result_path(cell)) in kept)
            if on_main(lambda: len(kept) < len(cells)):  # noqa: B023
                on_main(lambda: self._forget(task))  # noqa: B023
                tasks[task.name] = None
        self.force = False
        return None if None in tasks.values() else [results[i] for i in sorted(results)]

    def images(self, count: int) -> None:
        """See `Watch`."""
        self._evaluated += count * get_world_size()
        self._report()

    def check(self) -> None:
        """See `Watch`; a lost lease ends the pass."""
        held = self._leases.get(self._unit)
        if held is not None and held.compromise is not None:
            raise TaskLost(f'another worker has taken over {self._unit}')

    def _next(self):
        """Return the name of a unit that this process has claimed, WAIT, or None if nothing is left to do.

        A single unit that another process has claimed is waited for a while: the process may be gone with its host.
        """
        names, left, now = set(os.listdir(self.folder)), False, time.monotonic()
        claimed = sum(name.endswith('.claim') for name in names)
        for name in sorted(self._units, key=lambda name: f'{name}.claim' in names):  # those without a claim first
            task, part = self._units[name]
            if name in self._forced or not self.force and self._outcome(name, names) is not None:
                continue
            if part is None and not self._parts_over(task, names if self._only is None else None):
                left = left or self._only is None
                continue
            pause = POLL + PER_CLAIM * claimed if f'{name}.claim' in names else 0.0
            if now - self._looks.get(name, -1e9) < pause:
                left = True
                continue
            self._looks[name] = now
            if name not in self._leases:  # the object remembers since when another host is silent
                self._leases[name] = lease(os.path.join(self.folder, f'{name}.claim'))
            if not _taken(self._leases[name]):
                left = True
                continue
            if self.force or self._outcome(name) is None:
                self._held_since = None
                return name
            self._leases[name].release()  # its worker has finished meanwhile
        if left and self._only is not None:
            self._held_since = now if self._held_since is None else self._held_since
            left = now - self._held_since < DURATION + GRACE
        return WAIT if left else None

    def _parts_over(self, task, names=None):
        """Return whether all parts of a task have an outcome."""
        return all(self._outcome(name, names) is not None for name, part in task.units() if part)

    def _path(self, name):
        return os.path.join(self.folder, f'{name}.json')

    def _outcome(self, name, names=None):
        """Return DONE or FAILED for a unit with an outcome of the present code, else None.

        Args:
            name (str): of the unit.
            names (set): the files of the folder, as far as they are known.
        """
        if self._outcomes.get(name) is not None or names is not None and f'{name}.json' not in names:
            return self._outcomes.get(name)
        outcome = read_outcome(self._path(name))
        if outcome and outcome['sources'] == sources_digest():
            results = outcome['results'].values()
            if all(os.path.exists(os.path.join(self.runtime['work_dir'], path)) for path in results):
                self._outcomes[name] = outcome['state']
        return self._outcomes.get(name)

    def _run(self, name):
        """Run a unit that the main process has claimed, and write its outcome."""
        self._check_device()
        task, part = self._units[name]
        self._unit, self._evaluated, self._start = name, 0, time.monotonic()
        self._report(0)
        try:
            outcome = self._evaluate(task, part)
            on_main(lambda: self._write(name, task, outcome))
        except Busy:
            self._looks[name] = time.monotonic() + BUSY  # in the future, so that other units come first
        except TaskLost as error:
            note(f'{error}; its counts so far stay')
        finally:
            self._unit = None
            if is_main_process():
                self._leases[name].release()

    def _evaluate(self, task, part):
        """Run the cells of a task, or a part of their images, and return the outcome."""
        before = on_main(lambda: self._failures_of(task))
        left = [i for i in task.cells if i not in before]
        errors, results = {}, {}
        try:
            self._decide()
            configs = dict(zip(task.cells, on_all(lambda: self._configs(task))))
            cells = {i: prepare(configs[i]) for i in left}
            kept = {}
            if not self.force:
                on_main(lambda: kept.update(kept_results(list(cells.values()))))
            there = set(on_main(lambda: sorted(kept)))
            todo = {cell.hash: cell for cell in cells.values() if result_path(cell) not in there}
            found, failed = run_apart(list(todo.values()), part, self, wait=False) if todo else ({}, {})
            errors = {i: failed[cell.hash] for i, cell in cells.items() if cell.hash in failed}
            if not part and is_main_process():
                for i, cell in cells.items():
                    result = kept.get(result_path(cell)) or found.get(cell.hash)
                    if result:
                        named_result(cell, result)
                        results[i] = os.path.relpath(result_path(cell), self.runtime['work_dir'])
        except (Busy, StopError, TaskLost):
            raise
        except UserError as error:
            check_shared(error)
            check_roots(self._roots())
            errors = dict.fromkeys(left, error)
        reasons = {i: reason(error) for i, error in errors.items()}
        for i, text in reasons.items():
            self.failures[cell_name(self.plan.cells[i])] = text
        for text in {_trace(error) for error in errors.values()} - {None}:
            note(text)
        traces = {i: text for i, error in errors.items() if (text := _trace(error))}
        return dict(results=results, failures={**before, **reasons}, traces=traces)

    def _roots(self):
        """Return the folders of the plan's data sets."""
        first = {task.dataset: task._replace(cells=task.cells[:1]) for task in self.plan.tasks}
        configs = [self._configs(task)[0] for task in first.values()]
        return [find_root(config.test_dataloader.dataset.data_root) for config in configs]

    def _failures_of(self, task):
        """Return position of a cell -> reason, of the cells of a task that have failed, in a part or in all."""
        failures = {}
        for name, _ in task.units():
            outcome = read_outcome(self._path(name)) if self._outcome(name) == FAILED else None
            failures.update((int(i), text) for i, text in (outcome['failures'] if outcome else {}).items())
        return failures

    def _write(self, name, task, outcome):
        """Write the outcome of a unit."""
        outcome.update(
            state=FAILED if outcome['failures'] else DONE,
            sources=sources_digest(),
            images=self._evaluated,
            flops=self._evaluated * task.work.flops / get_world_size(),  # of one device
            seconds=time.monotonic() - self._start,
            device=device_name(get_device()),
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        write_outcome(outcome, self._path(name))
        self._outcomes[name], self._read[name] = outcome['state'], outcome
        self._forced.add(name)

    def _report(self, every=REPORT):
        """Write what this worker is doing, and show the progress of the plan; not more often than `every` seconds."""
        if not is_main_process() or time.monotonic() - self._reported < every:
            return
        self._reported = time.monotonic()
        task, part = self._units[self._unit]
        own = Running(
            self._unit,
            f'{task.dataset}, {len(task.cells)} cells',
            f'{socket.gethostname()}, process {os.getpid()}',
            self._evaluated,
            -(-task.images // (part[1] if part else 1)),
            time.monotonic() - self._start,
            self._evaluated * task.work.flops,
            0.0,
        )
        with contextlib.suppress(UserError, OSError):  # the run does without
            write_result(own._asdict(), self._report_path)
            found = progress(self.plan, self.folder, self._read, own)
            self._bar.n = found.done
            self._bar.set_postfix_str(found.line())


def _taken(held):
    """Return whether this process holds a lease now, without waiting for another owner."""
    try:
        held.acquire(blocking=False)
    except Timeout:
        return False
    return True


def _trace(error):
    """Return the traceback of an error that is a bug; None of a `UserError`."""
    return None if isinstance(error, UserError) else ''.join(traceback.format_exception(error))
