"""What a function costs: time, and memory at its peak."""

import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fsa_seg.ops.device import gpu_peak, trim_memory


def measured(function: Callable[[], Any], device: torch.device | str) -> tuple[Any, tuple[float, float]]:
    """Return a function's result and its cost: (result, (seconds, bytes of memory at the peak, NaN if unknown)).

    On a CPU the peak is the process's, beyond what it held before (Linux alone); on a GPU the allocator's.
    """
    if torch.device(device).type == 'cuda':
        seconds = []

        def timed():
            start = time.perf_counter()
            result = function()
            torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
            return result

        result, peak = gpu_peak(timed, device)
        return result, (seconds[0], peak)
    before = _reset_peak()
    start = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - start
    return result, (seconds, max(0, _status('VmHWM') - before) if before < math.inf else math.nan)


def tensor_peak(function: Callable[[], Any], device: torch.device | str) -> int:
    """Return how many bytes of tensors a function holds at its peak, beyond what was held before.

    On a CPU these are the allocations that torch's profiler sees; on a GPU as of `measured`.
    """
    if torch.device(device).type == 'cuda':
        return measured(function, device)[1][1]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'trace.json')
        profiler.export_chrome_trace(path)
        with open(path, encoding='utf-8') as f:
            events = [event for event in json.load(f)['traceEvents'] if event['name'] == '[memory]']
    return max(itertools.accumulate((e['args']['Bytes'] for e in sorted(events, key=lambda e: e['ts'])), initial=0))


def product_flops(run: Callable[[], Any]) -> int:
    """Return the floating-point operations of the products in a function.

    Torch's fused attention is switched off, because torch's versions differ in the fused forms that they count.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def _reset_peak():
    """Reset the process's peak of resident memory, and return what it holds now, in bytes."""
    trim_memory()
    try:
        with open('/proc/self/clear_refs', 'w') as f:
            f.write('5')
    except OSError:
        return math.inf  # no way to know
    return _status('VmRSS')


def _status(key):
    """Return an entry of /proc/self/status in bytes, 0 where there is none."""
    try:
        with open('/proc/self/status') as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith(key))
    except (OSError, StopIteration):
        return 0
