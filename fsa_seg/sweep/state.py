"""What has become of a plan, from the files that its workers keep, see `fsa_seg.sweep.worker`."""

import contextlib
import glob
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

from fsa_seg.errors import UserError, warn_once
from fsa_seg.evaluation.results import write_result
from fsa_seg.sweep.estimate import clock
from fsa_seg.sweep.plan import Plan, read_plan
from fsa_seg.system.paths import sources_digest

DONE, FAILED = 'done', 'failed'  # states of a unit with an outcome
SILENT = 90.0  # seconds without a sign of life after which a worker is said to be lost


class Running(NamedTuple):
    """What a worker is doing.

    Attributes:
        unit: name of the unit.
        title: data set and number of cells.
        where: host and process.
        images: images that are evaluated, by this worker.
        of: images of the unit.
        seconds: time on the unit.
        flops: floating-point operations done, as estimated.
        silent: seconds since the worker's last sign of life, by the file server's clock.
    """

    unit: str
    title: str
    where: str
    images: int
    of: int
    seconds: float
    flops: float
    silent: float


class Progress(NamedTuple):
    """How far a plan is.

    Attributes:
        cells, done: numbers of cells, in all and with a result.
        failures: position of a cell -> reason.
        running: of the workers that were looked at.
        workers: number of claimed units.
        rate: images per second, of all workers.
        seconds: time left, as estimated from the workers' present rates; None where nothing tells it.
    """

    cells: int
    done: int
    failures: dict[int, str]
    running: list[Running]
    workers: int
    rate: float
    seconds: float | None

    @property
    def finished(self) -> bool:
        """Whether every cell has a result or has failed."""
        return self.done + len(self.failures) == self.cells

    def failures_by_name(self, plan: Plan) -> dict[str, str]:
        """Return name of a cell -> reason."""
        return {cell_name(plan.cells[i]): reason for i, reason in self.failures.items()}

    def line(self) -> str:
        """Return the workers, the failed cells, the rate and the time left, as one text."""
        lost = sum(worker.silent > SILENT for worker in self.running)
        parts = [f'workers {self.workers - lost}'] if self.workers > lost else []
        parts += [f'lost {lost}'] if lost else []
        parts += [f'failed {len(self.failures)}'] if self.failures else []
        parts += [f'{self.rate:.2f} images/s'] if self.rate else []
        parts += [f'{clock(self.seconds)} left'] if self.seconds else []
        return ', '.join(parts)


def cell_name(cell: Mapping[str, Any]) -> str:
    """Return how messages name a cell of a plan: its data set, method and feedback first, and then the rest."""
    first = [str(cell.get(key)) for key in ('dataset', 'method', 'feedback') if cell.get(key)]
    rest = [f'{key} {value}' for key, value in cell.items() if key not in ('dataset', 'method', 'feedback') and value]
    return ' '.join(first) + (f' ({", ".join(rest)})' if rest else '')


def sweep_folder(work_dir: str, plan: Plan) -> str:
    """Return the folder of a plan's state."""
    return os.path.join(work_dir, 'sweep', plan.id)


def plans_in(work_dir: str) -> dict[str, Plan]:
    """Return folder -> plan for the plans that have been started in a work_dir, the latest first.

    A file that is no plan is left out with a warning.
    """
    paths, plans = glob.glob(os.path.join(glob.escape(work_dir), 'sweep', '*', 'plan.json')), {}
    for path in sorted(paths, key=os.path.getmtime, reverse=True):
        try:
            plans[os.path.dirname(path)] = read_plan(path)
        except UserError as error:
            warn_once(f'left out: {error}')
    return plans


def read_json(path: str) -> dict[str, Any] | None:
    """Return the dict in a JSON file; None for a file that is missing, torn or something else."""
    try:
        with open(path, encoding='utf-8') as f:
            value = json.load(f)
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_outcome(path: str) -> dict[str, Any] | None:
    """Return the outcome in a unit's file; None for a missing file, and for one that no worker wrote for this unit."""
    outcome = read_json(path) or {}
    seal = outcome.pop('seal', None)
    return outcome if seal is not None and seal == _seal(path, outcome) else None


def write_outcome(outcome: dict[str, Any], path: str) -> None:
    """Write the outcome of a unit, with a seal of its contents, of the unit and of the plan."""
    write_result(dict(outcome, seal=_seal(path, outcome)), path)


def _seal(path, outcome):
    folder, name = os.path.split(os.path.abspath(path))
    return hashlib.sha256(json.dumps([os.path.basename(folder), name, outcome]).encode()).hexdigest()[:16]


def progress(
    plan: Plan, folder: str, outcomes: dict[str, dict[str, Any]] | None = None, own: Running | None = None
) -> Progress:
    """Return how far a plan is, by the files in its folder.

    Args:
        plan: the plan.
        folder: of its state.
        outcomes: unit -> outcome, as read before; the function adds the new ones. None reads all.
        own: of the worker that asks. The other workers then count as equally fast, and their reports are not read:
            hundreds of workers ask.
    """
    outcomes, names = {} if outcomes is None else outcomes, set(os.listdir(folder))
    for name in {name for name in outcomes if f'{name}.json' not in names}:
        del outcomes[name]
    for name in (name for task in plan.tasks for name, _ in task.units()):
        if f'{name}.json' in names and name not in outcomes:
            outcome = read_outcome(os.path.join(folder, f'{name}.json'))
            if outcome and outcome.get('sources') == sources_digest():  # of other code it does not count
                outcomes[name] = outcome
    running = running_in(folder) if own is None else [own]
    claims = sum(name.startswith('p') and name.endswith('.claim') for name in names)
    results, failures, left = set(), {}, 0.0
    for task in plan.tasks:
        units = task.units()
        if task.name not in outcomes:
            left += task.flops * sum(name not in outcomes for name, _ in units[:-1] or units) / task.parts
        for name, _ in units:
            outcome = outcomes.get(name, {})
            results.update(map(int, outcome.get('results', ())))
            failures.update((int(i), reason) for i, reason in outcome.get('failures', {}).items())
    alive = [worker for worker in running if worker.silent <= SILENT]
    rates = [(worker.images / worker.seconds, worker.flops / worker.seconds) for worker in alive if worker.seconds]
    factor = 1 if own is None else max(claims, 1)
    images, flops = (factor * sum(values) for values in zip(*rates)) if rates else (0.0, 0.0)
    left -= factor * sum(worker.flops for worker in alive)
    return Progress(
        sum(len(task.cells) for task in plan.tasks),
        len(results),
        failures,
        running,
        claims,
        images,
        max(left, 0) / flops if flops else None,
    )


def status_text(plan: Plan, folder: str, found: Progress) -> str:
    """Return what `fsa-seg status` prints of a plan.

    Args:
        plan: the plan.
        folder: of its state.
        found: of `progress`.
    """
    line = f', {found.line()}' if found.line() else ''
    lines = [f'{plan.suite}: {found.done} of {found.cells} cells done{line}']
    for worker in found.running:
        lost = f', no sign of life for {clock(worker.silent)}' if worker.silent > SILENT else ''
        lines.append(
            f'  {worker.unit} ({worker.title}): {worker.images} of {worker.of} images in {clock(worker.seconds)} '
            f'on {worker.where}{lost}'
        )
    if found.failures:
        lines += ['  failed:', *(f'  {line}' for line in failures_text(found.failures_by_name(plan)).splitlines())]
        lines.append(f'  fsa-seg benchmark --plan {os.path.join(folder, "plan.json")} --retry   runs them again')
    return '\n'.join([*lines, f'  ({plan.command})'])


def failures_text(failures: Mapping[str, str]) -> str:
    """Return the reasons of failed cells, each with its cells.

    Args:
        failures: name of a cell -> reason.
    """
    by_reason = {}
    for name, reason in failures.items():
        by_reason.setdefault(reason, []).append(name)
    lines = []
    for reason, names in by_reason.items():
        more = f'; ... {len(names)} cells in all' if len(names) > 3 else ''
        lines += [reason, f'    failed by it: {"; ".join(names[:3])}{more}']
    return '\n'.join(lines)


def running_in(folder: str) -> list[Running]:
    """Return what the workers of a plan are doing; of several reports on a unit the last one counts.

    A worker that was killed leaves its report, and another worker takes over its unit.
    """
    found, now = {}, _server_time(folder)
    for path in glob.glob(os.path.join(glob.escape(folder), 'workers', '*.json')):
        report = read_json(path) or {}
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError, ArithmeticError):
            claim = os.stat(os.path.join(folder, f'{report["unit"]}.claim'))  # its worker touches it all the time
            running = Running(**{**report, **{key: float(report[key]) for key in ('seconds', 'flops')}})
            running = running._replace(
                images=int(report['images']), of=int(report['of']), silent=max(now - claim.st_mtime, 0.0)
            )
            found[running.unit] = max(found.get(running.unit, (0, None)), (os.stat(path).st_mtime_ns, running))
    return [running for _, running in sorted(found.values(), key=lambda pair: pair[1].unit)]


def _server_time(folder):
    """Return the present time by the clock of the folder's file server: hosts' clocks may differ from it."""
    path = os.path.join(folder, 'workers', f'.{secrets.token_hex(8)}')
    try:
        with open(path, 'w'):
            return os.stat(path).st_mtime
    except OSError:
        return 0.0
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)
