"""What differs between a CPU and a GPU: copies, counts, precision, and how many windows fit."""

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# what a GPU without enough free memory raises
OutOfMemoryError = getattr(torch, 'OutOfMemoryError', torch.cuda.OutOfMemoryError)  # torch 2.4 lacks the first


def device_name(device: torch.device | str) -> str:
    """Return what a device is called in results and tables."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else f'cpu ({torch.get_num_threads()} threads)'


def exact_float32() -> None:
    """Compute float32 products in float32, whatever the environment sets: no TF32 on a GPU, no bfloat16 on a CPU."""
    if not torch.cuda.is_initialized():  # CUDA's libraries read these when they start
        os.environ['NVIDIA_TF32_OVERRIDE'] = '0'
    torch.set_float32_matmul_precision('highest')
    torch.backends.cudnn.allow_tf32 = False


def tf32_state() -> dict[str, Any]:
    """Return the switches that decide how float32 products are rounded, as a JSON-ready dict."""
    return dict(
        matmul=torch.get_float32_matmul_precision(),
        cudnn=torch.backends.cudnn.allow_tf32,
        override=os.environ.get('NVIDIA_TF32_OVERRIDE'),
    )


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on a device; one of the host goes to a GPU without waiting for it."""
    if torch.device(device).type == 'cuda' and tensor.device.type == 'cpu':
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@functools.lru_cache
def constant(values: tuple, device: torch.device | str) -> Tensor:
    """Return numbers (a tuple) as a float32 tensor on a device; the copy is made once."""
    return to_device(torch.tensor(values), device)


def to_host(tensor: Tensor) -> Callable[[], Tensor]:
    """Start copying a tensor to the host, and return a function that waits for the copy and returns it."""
    if tensor.device.type != 'cuda':
        return tensor.cpu
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait


def count_labels(labels: Tensor, count: int) -> Tensor:
    """Return how often each of 0 to count − 1 occurs, (count,) int64; unlike `bincount`, no GPU is waited for.

    Args:
        labels (any shape): int64, from 0 to count − 1.
        count (int): see above.
    """
    labels = labels.flatten()
    return torch.zeros(count, dtype=torch.int64, device=labels.device).scatter_add_(0, labels, torch.ones_like(labels))


def gpu_peak(function: Callable[[], Any], device: torch.device | str) -> tuple[Any, int]:
    """Return a function's result, and the bytes that a GPU's allocator held at the peak, beyond those held before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = function()
    torch.cuda.synchronize(device)
    return result, max(0, torch.cuda.max_memory_allocated(device) - before)


def batch_that_fits(run: Callable[[], Any], device: torch.device, most: int = 64) -> int:
    """Return how many windows fit at once into half of a GPU's free memory: a power of two; 1 on a CPU.

    On a CPU batches of windows are no faster (`fsa-seg measure`): one window fills its caches.

    Args:
        run: function that computes one window, and returns what is held of it.
        device: where it runs.
        most: the greatest number.
    """
    if device.type != 'cuda':
        return 1
    _, peak = gpu_peak(run, device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + kept
    fitting = min(most, max(1, int(free / 2 / max(peak, 1))))
    return 2 ** (fitting.bit_length() - 1)


def trim_memory() -> None:
    """Give freed memory of the host, which the C library keeps, back to the system (Linux alone)."""
    with contextlib.suppress(OSError, AttributeError):  # another system's C library
        ctypes.CDLL('libc.so.6').malloc_trim(0)
