"""What differs between a CPU and a GPU: copies, counts, and what time and memory are measured by."""

import contextlib
import ctypes
import functools
import itertools
import json
import math
import os
import tempfile
import time

import torch


def device_name(device):
    """Return what a device is called in results and tables."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else f'cpu ({torch.get_num_threads()} threads)'


def exact_float32():
    """Have float32 products computed in float32, whatever the environment sets: no TF32 on a GPU, no bfloat16 on a CPU."""
    if not torch.cuda.is_initialized():  # CUDA's libraries read these when they start
        os.environ['NVIDIA_TF32_OVERRIDE'] = '0'
    torch.set_float32_matmul_precision('highest')
    torch.backends.cudnn.allow_tf32 = False


def tf32_state():
    """Return the switches that decide how float32 products are rounded, as a JSON-ready dict."""
    return dict(
        matmul=torch.get_float32_matmul_precision(),
        cudnn=torch.backends.cudnn.allow_tf32,
        override=os.environ.get('NVIDIA_TF32_OVERRIDE'),
    )


def to_device(tensor, device):
    """Return a tensor on a device; one of the host goes to a GPU without waiting for it."""
    if torch.device(device).type == 'cuda' and tensor.device.type == 'cpu':
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@functools.lru_cache
def constant(values, device):
    """Return numbers (a tuple) as a float32 tensor on a device; the copy is made once."""
    return to_device(torch.tensor(values), device)


def to_host(tensor):
    """Start copying a tensor to the host, and return a function that waits for the copy and returns it."""
    if tensor.device.type != 'cuda':
        return tensor.cpu
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))

    def wait():
        copied.synchronize()
        return host

    return wait


def count_labels(labels, count):
    """Return how often each of 0 to count − 1 occurs, (count,) int64; unlike `bincount`, no GPU is waited for.

    Args:
        labels (any shape): int64, from 0 to count − 1.
        count (int): see above.
    """
    labels = labels.flatten()
    return torch.zeros(count, dtype=torch.int64, device=labels.device).scatter_add_(0, labels, torch.ones_like(labels))


def measured(function, device):
    """Return a function's result, and what it cost: (result, (seconds, bytes of memory at its peak, or NaN if unknown)).

    On a CPU the peak is the process's, beyond what it held before (Linux alone); on a GPU the allocator's.
    """
    cuda = torch.device(device).type == 'cuda'
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        before = _reset_peak()
    start = time.perf_counter()
    result = function()
    if cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if cuda else _status('VmHWM')
    return result, (seconds, max(0, peak - before) if before < math.inf else math.nan)


def tensor_peak(function, device):
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


def batch_that_fits(run, device, most=64):
    """Return how many windows fit at once into half of a GPU's free memory: a power of two; 1 on a CPU.

    On a CPU batches of windows are no faster (`tools/measure.py`): one window fills its caches.

    Args:
        run: function that computes one window, and returns what is held of it.
        device (torch.device): see above.
        most (int): never more than these.
    """
    if device.type != 'cuda':
        return 1
    _, (_, peak) = measured(run, device)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    fitting = min(most, max(1, int(free / 2 / max(peak, 1))))
    return 2 ** (fitting.bit_length() - 1)


def trim_memory():
    """Give freed memory of the host, which the C library keeps, back to the system (Linux alone)."""
    with contextlib.suppress(OSError, AttributeError):  # another system's C library
        ctypes.CDLL('libc.so.6').malloc_trim(0)


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
