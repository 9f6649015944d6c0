"""Plans: the passes of a suite as a JSON file, which any number of workers run.

A pass is the cells that share trunk, VFMs and windows. A task is a pass, the costliest first, or a part of its images.
"""

import contextlib
import fnmatch
import functools
import gc
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmengine import Config

from fsa_seg.config.compose import compose
from fsa_seg.config.fingerprint import cell_hash, fingerprint, shared_key
from fsa_seg.config.suites import KINDS
from fsa_seg.datasets.data_sets import list_images
from fsa_seg.datasets.images import image_size
from fsa_seg.errors import UserError, one_of
from fsa_seg.evaluation.results import write_result
from fsa_seg.sweep.estimate import (
    SIZES,
    USUAL_SIZE,
    PassCost,
    Rate,
    Work,
    costs_table,
    measured_rates,
    parse_rate,
    parts_for,
    pass_work,
    schedule_table,
)
from fsa_seg.system.paths import find_root
from fsa_seg.system.progress import Bar

SCHEMA = 1  # version of the file format
MOST_CELLS = 32  # cells of a pass: each cell holds its own cosines of the images in a batch
SAMPLE = 24  # images whose sizes stand for those of a data set
ASSUMED_RATE = 60e12  # FLOP/s that passes are split by where no rate is known: of a GPU in half precision, roughly


class Task(NamedTuple):
    """A pass of a plan.

    Attributes:
        name: 'p0007'.
        dataset: name of the data set.
        cells: positions of the pass's cells among the plan's cells.
        images: number of images.
        work: of one image, see `fsa_seg.sweep.estimate.Work`.
        parts: number of parts that the images are split into; 1 is no split.
    """

    name: str
    dataset: str
    cells: list[int]
    images: int
    work: Work
    parts: int = 1

    flops = property(lambda self: self.images * self.work.flops)

    def units(self) -> list[tuple[str, tuple[int, int] | None]]:
        """Return (name, part) of what one worker runs at a time; the pass itself, without a part, comes last.

        Of a pass that is split, the pass itself waits for its parts, and makes the results of their counts.
        """
        if self.parts == 1:
            return [(self.name, None)]
        parts = [(f'{self.name}.{i}of{self.parts}', (i, self.parts)) for i in range(1, self.parts + 1)]
        return [*parts, (self.name, None)]


class Plan(NamedTuple):
    """The passes of a suite.

    Attributes:
        suite: name or file.
        command: that made the plan.
        options: arguments of `fsa_seg.config.compose.compose` that all cells share.
        cells: arguments of `compose` by cell, kind -> component.
        tasks: the costliest first.
    """

    suite: str
    command: str
    options: dict[str, Any]
    cells: list[dict[str, Any]]
    tasks: list[Task]

    @property
    def id(self) -> str:
        """A digest of what the plan computes, and in which tasks."""
        tasks = [[task.name, task.cells, task.parts] for task in self.tasks]
        return hashlib.sha256(json.dumps([self.options, self.cells, tasks]).encode()).hexdigest()[:12]

    def datasets(self) -> list[str]:
        """Return the names of the data sets, in the order of the cells."""
        return list(dict.fromkeys(task.dataset for task in sorted(self.tasks, key=lambda task: task.cells)))

    def configs(self, task: Task, options: Mapping[str, Any], runtime: Mapping[str, Any]) -> list[Config]:
        """Return the composed configs of a task's cells.

        Args:
            task: of this plan.
            options: arguments of `compose` in place of the plan's, such as the data root.
            runtime: entries of configs/runtime.py.
        """
        return [compose(**self.cells[i], **{**self.options, **options}, runtime=dict(runtime)) for i in task.cells]


def make_plan(
    suite: str,
    command: str,
    cells: Sequence[dict[str, Any]],
    options: Mapping[str, Any],
    most: int = MOST_CELLS,
    workers: int = 1,
    select: str | None = None,
    rate: float = ASSUMED_RATE,
) -> Plan:
    """Return the plan of cells.

    Args:
        suite, command, options: see `Plan`.
        cells: of `fsa_seg.config.suites.suite_cells`.
        most: largest number of cells in a pass.
        workers: GPUs that will run the plan: passes that would keep one GPU busy for long are split by images.
        select: see `selected`.
        rate: of a GPU, in FLOP/s; a part of a pass should take longer than its models take to load.

    Raises:
        UserError: a cell cannot be composed, or no cell is left.
    """
    gc.disable()  # thousands of configs stay, and each collection would look at all of them
    try:
        configs = [compose(**cell, **options) for cell in Bar(cells, desc='composing', unit='cell', leave=False)]
    finally:
        gc.enable()
    chosen = selected(select, cells, configs)
    cells, configs = [cells[i] for i in chosen], [configs[i] for i in chosen]
    tasks = []
    for group in _groups(configs, most):
        first = configs[group[0]]
        count, sizes = images_of(first)
        tasks.append(Task('', first.cell.dataset, group, count, pass_work([configs[i] for i in group], sizes)))
    tasks.sort(key=lambda task: (-task.flops, task.cells))
    total = sum(task.flops for task in tasks) / rate
    tasks = [
        task._replace(name=f'p{i:04d}', parts=parts_for(task.flops / rate, task.images, workers, total))
        for i, task in enumerate(tasks)
    ]
    return Plan(suite, command, json.loads(json.dumps(dict(options))), cells, tasks)


def _groups(configs, most):
    """Return the passes: lists of positions of configs; cells that differ in their names alone count once."""
    groups = {}
    for i, config in enumerate(configs):
        entries = fingerprint(config)
        groups.setdefault(shared_key(entries), {}).setdefault(cell_hash(entries), []).append(i)
    passes = []
    for by_hash in groups.values():
        alike = list(by_hash.values())
        passes += [sum(alike[start : start + most], []) for start in range(0, len(alike), most)]
    return passes


def images_of(config: Config) -> tuple[int, list[tuple[int, int]]]:
    """Return the number of a cell's images, and the (height, width) of a few of them.

    Where the data is not there, the number is the one that the data set must have, and the size is a typical one.
    """
    dataset = dict(config.test_dataloader.dataset, data_root=find_root(config.test_dataloader.dataset.data_root))
    name, known = config.cell.dataset, config.get('known_images')
    count, sizes = _data(json.dumps(dataset), name, json.dumps(known))
    return min(count, config.cell.limit or count), sizes


@functools.lru_cache
def _data(dataset, name, known):
    """Return the number of images of a data set, and sizes; arguments as JSON."""
    dataset, known = json.loads(dataset), json.loads(known)
    if os.path.isdir(dataset['data_root']):
        paths = [entry['img_path'] for entry in list_images(dataset)]
        sizes = []
        for path in paths[:: max(len(paths) // SAMPLE, 1)][:SAMPLE]:
            with contextlib.suppress(UserError):  # a damaged image fails its cells, and not the plan
                sizes.append(image_size(path))
        return len(paths), sizes or [SIZES.get(name, USUAL_SIZE)]
    count = max(known) if isinstance(known, list) else known
    if count is None:
        raise UserError(
            f'{name}: {dataset["data_root"]} is not there, and its config states no number of images: give the right '
            '--data-root'
        )
    return count, [SIZES.get(name, USUAL_SIZE)]


def selected(select: str | None, cells: Sequence[Mapping[str, Any]], configs: Sequence[Config]) -> list[int]:
    """Return the positions of the cells that a text selects.

    >>> selected('method=sc*', [dict(method='sclip'), dict(method='gem')], [Config(dict(cell={}))] * 2)
    [0]

    Args:
        select: 'method=sclip,dataset=voc*': every kind has to agree with one of its patterns, which '|' separates; the
            feedback of a bare method is 'none'. None selects all.
        cells: kind -> component.
        configs: composed, whose names count, too.

    Raises:
        UserError: an unknown kind, or no cell is left.
    """
    patterns = {}
    for term in filter(None, (select or '').split(',')):
        kind, equals, text = term.partition('=')
        if not (equals and text.strip()):
            raise UserError(f"--select: {term!r} is not KIND=PATTERN, such as --select 'method=sclip,dataset=voc*'")
        patterns[one_of(kind.strip(), KINDS, 'kind in --select', "; such as --select 'method=sclip,dataset=voc*'")] = [
            pattern.strip() for pattern in text.split('|')
        ]
    names = [
        {kind: {str(given.get(kind) or 'none').lower(), str(config.cell.get(kind) or 'none').lower()} for kind in KINDS}
        for given, config in zip(cells, configs)
    ]
    for kind, wanted in patterns.items():
        for pattern in wanted:
            if not any(fnmatch.fnmatchcase(name, pattern.lower()) for cell in names for name in cell[kind]):
                known = sorted({name for cell in names for name in cell[kind]})
                raise UserError(f'--select: no cell has the {kind} {pattern!r}; there are {", ".join(known)}')
    chosen = [i for i, cell in enumerate(names) if all(_agrees(cell[kind], patterns[kind]) for kind in patterns)]
    if not chosen:
        raise UserError(f'--select {select!r} leaves no cell: no cell has all of its values')
    return chosen


def _agrees(names, patterns):
    """Return whether one of a cell's names has one of the patterns."""
    return any(fnmatch.fnmatchcase(name, pattern.lower()) for name in names for pattern in patterns)


def sharded(tasks: Sequence[Task], shard: str | None) -> list[Task]:
    """Return the tasks of one of n shares of equal cost, as far as tasks allow.

    Args:
        tasks: the costliest first.
        shard: 'i/n', from 1; None is all.

    Raises:
        UserError: another text.
    """
    if shard is None:
        return list(tasks)
    number, _, count = shard.partition('/')
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f'--shard is {shard!r}; give i/n with i from 1 to n, such as 1/4')
    loads, shares = [0.0] * int(count), [[] for _ in range(int(count))]
    for task in tasks:
        least = loads.index(min(loads))
        loads[least] += task.flops
        shares[least].append(task)
    return shares[int(number) - 1]


def estimate(plan: Plan, rates: Sequence[str], work_dir: str, gpus: int = 1) -> str:
    """Return what a plan computes and what it costs, as Markdown.

    Args:
        plan: the plan.
        rates: speeds of devices, see `fsa_seg.sweep.estimate.parse_rate`.
        work_dir: folder with measured rates.
        gpus: a number of GPUs for the table of times to finish.
    """
    known = known_rates(rates, work_dir)
    costs = []
    for task in plan.tasks:
        backbone = str(plan.cells[task.cells[0]].get('backbone', plan.options.get('backbone', 'clip_vit-b16')))
        costs.append(PassCost(backbone, task.dataset, len(task.cells), task.images, task.work))
    cells, units = sum(len(task.cells) for task in plan.tasks), sum(task.parts for task in plan.tasks)
    split = f', split into {units} tasks' if units > len(plan.tasks) else ''
    lines = [f'{plan.suite}: {cells} cells in {len(plan.tasks)} passes over the data{split}', '']
    lines += [costs_table(costs, known)]
    if not known:
        lines += [
            '',
            'No speed of a device is known here, so that there are no hours: fsa-seg measure --sections rates measures '
            "this machine's, finished tasks tell theirs, and --rate A100=90 names one, in TFLOP/s.",
        ]
    for rate in known:
        lines += ['', f'{rate.device}: {rate.flops_per_second / 1e12:.3g} TFLOP/s ({rate.source})', '']
        lines += [schedule_table(costs, rate, sorted({1, 8, 64, 512, gpus}))]
    return '\n'.join(lines)


def known_rates(rates: Sequence[str], work_dir: str) -> list[Rate]:
    """Return the rates that texts such as 'A100=60' name, and then those that a work dir tells."""
    return [*map(parse_rate, rates), *measured_rates(work_dir)]


def write_plan(plan: Plan, path: str) -> None:
    """Write a plan as JSON."""
    tasks = [dict(task._asdict(), work=task.work._asdict()) for task in plan.tasks]
    write_result(dict(plan._asdict(), schema=SCHEMA, id=plan.id, tasks=tasks), path)


def read_plan(path: str) -> Plan:
    """Return the plan in a file.

    Raises:
        UserError: the file is no plan, or was changed by hand.
    """
    try:
        with open(path, encoding='utf-8') as f:
            data = json.load(f)
        if data['schema'] != SCHEMA:
            raise UserError(f'{path} is a plan of schema {data["schema"]}, and this fsa_seg reads {SCHEMA}; plan anew')
        tasks = [Task(**{**task, 'work': Work(**task['work'])}) for task in data['tasks']]
        plan = Plan(tasks=tasks, **{key: data[key] for key in Plan._fields if key != 'tasks'})
        known = range(len(plan.cells))
        if data['id'] != plan.id or any(i not in known for task in tasks for i in task.cells):
            raise UserError(f'{path} was changed after it was made; make a plan of the right options by fsa-seg plan')
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}; fsa-seg plan makes a plan') from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{path} is no plan ({error!r}); fsa-seg plan makes one') from None
    return plan
