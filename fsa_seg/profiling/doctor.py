"""The doctor, behind `fsa-seg doctor`: `CHECKS` names the checks, `run_check` runs a check and returns its verdicts.

This file has the checks of speed and memory. `fsa_seg.profiling.self_checks` has the checks of computed values, and
defines what a check is.
"""

import contextlib
import math
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fsa_seg.errors import one_line
from fsa_seg.profiling.self_checks import (
    LABELS,
    MINI,
    Finding,
    Skip,
    dense,
    golden,
    gpu,
    labels,
    moved_labels,
    packages,
    sdpa,
    sync,
    tf32,
    used_device,
)
from fsa_seg.system.machine import BF16_UNITS, amount, cpu_flags, memory

BACKBONES = {'clip_vit-b16': 2, 'clip_vit-l14': 3, 'openclip_vit-h14': 5}  # name -> GiB that the model takes
VFM = 'dino_vit-b8'
LIMIT = 90  # seconds that two processes may take to add two tensors
PROCESS = """
import datetime, os, sys, torch, torch.distributed as dist
backend, rank = sys.argv[1], int(os.environ['LOCAL_RANK'])
device = 'cpu'
if backend == 'nccl':
    device = f'cuda:{rank}'
    torch.cuda.set_device(device)
dist.init_process_group(backend, timeout=datetime.timedelta(seconds=60))
x = torch.full((1000, ), rank + 1.0, device=device)
dist.all_reduce(x)
print(f'sum {x.min().item()} {x.max().item()}', flush=True)
dist.destroy_process_group()
"""


class Verdict(NamedTuple):
    """A row of the doctor's table.

    Attributes:
        check: name of the check, and of its part.
        verdict: 'ok', 'WRONG' or 'skipped (why)'.
        detail: one line.
    """

    check: str
    verdict: str
    detail: str


def run_check(
    name: str, quick: bool = False, hint: Callable[[BaseException], str] = lambda error: ''
) -> tuple[list[Verdict], float]:
    """Return a check's verdicts, and its seconds; an error in the check is a verdict WRONG.

    Args:
        name: a key of CHECKS.
        quick: whether to leave out the slow parts.
        hint: function from an exception to text that tells how to mend the exception's cause.
    """
    rows, start = [], time.perf_counter()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):  # libraries print
            warnings.simplefilter('ignore')
            for part, fine, detail in CHECKS[name].run(quick):
                if isinstance(fine, Exception):
                    fine, detail = False, one_line(fine) + hint(fine)
                verdict = fine if isinstance(fine, str) else 'ok' if fine else 'WRONG'
                rows.append(Verdict(f'{name}: {part}' if part else name, verdict, detail))
    except Skip as why:
        rows.append(Verdict(name, f'skipped ({why})', ''))
    except Exception as error:  # a machine can raise any error in a check
        rows.append(Verdict(name, 'WRONG', one_line(error) + hint(error)))
    return rows, time.perf_counter() - start


def window(quick: bool) -> Iterator[Finding]:
    """One window of each backbone with DINO B/8 at real size, with random weights: memory, images per second."""
    from fsa_seg.models.segmentor import resolve_precision
    from fsa_seg.profiling.costs import CostTables

    device, precision = used_device(), resolve_precision('auto')
    _, free = memory()
    for backbone, needed in list(BACKBONES.items())[: 1 if quick else None]:
        if free is not None and free < needed * 2**30:
            yield backbone, f'skipped (needs {needed} GiB of memory, {amount(free)} are free)', ''
            continue
        once = device == 'cpu' and (quick or backbone == 'openclip_vit-h14')
        repeats = 3 if device == 'cuda' else 1
        measured = CostTables(backbone, VFM, precision, device, repeats, MINI).window(once=once)
        rates = ', '.join(
            f'{rate:.3g} images/s with {size} windows at once ({100 * share:.0f} % of the matrix rate)'
            for size, (rate, share) in measured['rates'].items()
        ).replace('1 windows', '1 window')
        peak = 'unknown' if math.isnan(measured['peak']) else f'{measured["peak"] / 2**20:.0f} MiB'
        yield backbone, True, f'{precision}: weights {measured["weights"] / 2**20:.0f} MiB, window {peak}; {rates}'


def processes(quick: bool) -> Iterator[Finding]:
    """Two processes add two tensors: with gloo, and with NCCL on a machine with two GPUs."""
    import torch

    for backend in ['nccl', 'gloo'] if torch.cuda.device_count() > 1 else ['gloo']:
        start = time.perf_counter()
        try:
            outputs = _two_processes(backend)
        except subprocess.TimeoutExpired:
            yield backend, False, f'no sum in {LIMIT} s; the processes were ended'
            continue
        fine = all('sum 3.0 3.0' in output for output in outputs)
        printed = [line.strip() for output in outputs for line in output.splitlines()]
        lines = [line for line in printed if 'Error' in line or line.startswith('sum')]
        sums = f'1 + 2 = 3 in {time.perf_counter() - start:.1f} s'
        yield backend, fine, sums if fine else (' / '.join(lines) or 'no sum was printed')[:300]


def _two_processes(backend):
    """Run PROCESS in two processes, and return their outputs; raise TimeoutExpired after LIMIT seconds."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        group = dict(os.environ, WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free.getsockname()[1]))
    end = time.monotonic() + LIMIT
    command, pipes = [sys.executable, '-c', PROCESS, backend], dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    runs = [subprocess.Popen(command, env=dict(group, RANK=rank, LOCAL_RANK=rank), text=True, **pipes) for rank in '01']
    try:
        return [run.communicate(timeout=max(0.1, end - time.monotonic()))[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()
            run.stdout.close()


def bf16(quick: bool) -> Iterator[Finding]:
    """The gain of --precision bf16 on a CPU with bf16 units, and how many labels bf16 changes."""
    device, flags = used_device(), [flag for flag in BF16_UNITS if flag in cpu_flags()]
    if device != 'cpu':
        raise Skip('a GPU is used here')
    if not flags:
        raise Skip('this CPU has no bf16 matrix units')
    from fsa_seg.profiling.costs import CostTables

    backbone = next(iter(BACKBONES))
    for row in CostTables(backbone, VFM, 'fp32', device, 2, MINI).bf16():
        name = dict(trunk=f'trunk of {backbone}', VFM=VFM)[row['model']]
        gain = f'{row["times faster"]} times as fast as fp32: {row["bf16"]} for {row["fp32"]}'
        yield name, True, f'{gain}; {", ".join(flags)}'
    for name, pixels, moved in moved_labels((('proxyclip', 'fsa'),), 1, ('bf16',)):
        fine = 100 * (1 - moved['bf16'] / pixels) >= LABELS['bf16']
        limit = f'(at least {LABELS["bf16"]} % have to stay)'
        yield 'labels', fine, f'{moved["bf16"]} of {pixels} pixels of the toy move under {name} {limit}'


class Check(NamedTuple):
    """A check, and its approximate seconds on 2 CPU cores.

    Attributes:
        run: generator function of `quick`, see `self_checks`.
        quick: seconds of the quick check; None leaves the check out.
        full: seconds of the full check.
    """

    run: Callable[[bool], Iterator[Finding]]
    quick: int | None
    full: int


CHECKS = dict(
    packages=Check(packages, 5, 5),
    gpu=Check(gpu, 0, 0),
    tf32=Check(tf32, 1, 1),
    golden=Check(golden, 1, 1),
    dense=Check(dense, 1, 1),
    labels=Check(labels, 4, 30),
    sync=Check(sync, 0, 0),
    sdpa=Check(sdpa, 1, 10),
    window=Check(window, 12, 110),
    processes=Check(processes, 4, 4),
    bf16=Check(bf16, None, 25),
)
