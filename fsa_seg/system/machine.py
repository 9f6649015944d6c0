"""Report a machine as pairs of text (subject, value): versions, CPU, GPUs, memory, caches, disk, environment.

The file imports Python's own library alone. Functions import other libraries where they need them, so that a missing
library costs its own lines alone.
"""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys

from fsa_seg.errors import one_line

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_COPY = os.path.join(PACKAGE, 'shipped')
# the repository; in an installed package the copy of its configs, mini splits, toy models and golden tensors
ROOT = _COPY if os.path.isdir(_COPY) else os.path.dirname(PACKAGE)
PACKAGES = (  # distributions whose versions the report gives
    'torch',
    'torchvision',
    'triton',
    'open_clip_torch',
    'timm',
    'onedl-mmengine',
    'onedl-mmcv',
    'onedl-mmsegmentation',
    'mmengine',
    'mmcv',
    'mmcv-lite',
    'mmsegmentation',
    'numpy',
    'scipy',
    'opencv-python',
    'opencv-python-headless',
    'opencv-contrib-python',
    'pillow',
    'safetensors',
    'huggingface_hub',
    'ftfy',
    'regex',
    'filelock',
    'tqdm',
    'matplotlib',
    'jinja2',
)
FINGERPRINT_PACKAGES = tuple(
    name for name in PACKAGES if name not in ('triton', 'scipy', 'filelock', 'tqdm', 'matplotlib', 'jinja2')
)  # a fingerprint names these
INSTRUCTIONS = (  # instruction sets that the report names
    'avx2',
    'avx512f',
    'avx512_vnni',
    'avx512_bf16',
    'avx512_fp16',
    'amx_tile',
    'amx_bf16',
    'amx_int8',
    'asimd',
    'sve',
    'bf16',
    'i8mm',
)
BF16_UNITS = ('amx_bf16', 'avx512_bf16', 'bf16')  # flags of a CPU that multiplies bf16 matrices
OFFLINE = ('HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE', 'HF_DATASETS_OFFLINE')
VARIABLES = (  # variables of the environment that can change a number or a place
    'TORCH_ALLOW_TF32_CUBLAS_OVERRIDE',
    'NVIDIA_TF32_OVERRIDE',
    'CUBLAS_WORKSPACE_CONFIG',
    'ONEDNN_DEFAULT_FPMATH_MODE',
    'ONEDNN_MAX_CPU_ISA',
    'ATEN_CPU_CAPABILITY',
    'OMP_NUM_THREADS',
    'MKL_NUM_THREADS',
    'CUDA_VISIBLE_DEVICES',
    'PYTORCH_CUDA_ALLOC_CONF',
    'FSA_SEG_CONFIGS',
    'FSA_SEG_CACHE',
    'HF_HOME',
    'HF_HUB_CACHE',
    'TORCH_HOME',
    'PYTHONPATH',
)
GROUP_FILES = (
    ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory.current'),  # limit and use of control groups 2 and 1
    ('/sys/fs/cgroup/memory/memory.limit_in_bytes', '/sys/fs/cgroup/memory/memory.usage_in_bytes'),
)
UNLIMITED = 2**60  # bytes; a control group without a limit reports more


def report() -> list[tuple[str, str]]:
    """Return pairs (subject, value) of text about the machine; a section that cannot be read becomes its error."""
    rows = []
    for section in (software, processor, graphics, storage, environment):
        try:
            rows += section()
        except Exception as error:  # a library that is missing or broken
            rows.append((section.__name__, f'cannot be read: {one_line(error)}'))
    return rows


def software() -> list[tuple[str, str]]:
    """Return the versions of Python, the libraries and the suite."""
    libraries = []
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            libraries.append(f'{name} {importlib.metadata.version(name)}')
    rows = [
        ('system', platform.platform()),
        ('Python', f'{platform.python_version()}, {_short(sys.executable)}'),
        ('libraries', ', '.join(libraries)),
        ('fsa_seg', f'{_short(PACKAGE)}, sources {_sources()}'),
    ]
    with contextlib.suppress(ImportError):
        import torch

        cuda, cudnn = torch.version.cuda or '–', torch.backends.cudnn.version() or '–'
        onednn = 'yes' if torch.backends.mkldnn.is_available() else 'no'
        rows.append(('torch is built with', f'CUDA {cuda}, cuDNN {cudnn}, oneDNN {onednn}'))
    return rows


def processor() -> list[tuple[str, str]]:
    """Return the CPU's name, cores, threads and instruction sets."""
    lines = _lines('/proc/cpuinfo')
    sockets, numbers = ([value for key, value in lines if key == name] for name in ('physical id', 'core id'))
    cores = len(set(zip(sockets, numbers)))
    usable = usable_cores()
    threads, capability = '–', '–'
    with contextlib.suppress(ImportError):
        import torch

        threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    flags = [flag.upper() for flag in INSTRUCTIONS if flag in cpu_flags()]
    counts = f'{cores or "?"} cores, {os.cpu_count()} logical, {usable} usable; torch uses {threads} threads'
    return [
        ('CPU', cpu_name()),
        ('cores', counts),
        ('instruction sets', f'{", ".join(flags) or "unknown"}; torch uses {capability}'),
    ]


def usable_cores() -> int:
    """Return the number of logical cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def cpu_name() -> str:
    """Return the CPU's name, or else the name of its architecture."""
    names = (value for key, value in _lines('/proc/cpuinfo') if key == 'model name')
    return next(names, platform.processor() or platform.machine())


def cpu_flags() -> set[str]:
    """Return the CPU's flags; none where the system does not tell."""
    return {flag for key, value in _lines('/proc/cpuinfo') if key in ('flags', 'Features') for flag in value.split()}


def graphics() -> list[tuple[str, str]]:
    """Return each GPU's name, memory and capability, and the driver's version."""
    rows = [('nvidia-smi', line) for line in nvidia_smi()]
    import torch

    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        text = (
            f'{device.name}, {amount(total)} ({amount(free)} free), capability '
            f'{device.major}.{device.minor}, {device.multi_processor_count} multiprocessors'
        )
        rows.append((f'GPU {i}', text))
    if torch.cuda.is_available():
        rows.append(('kernels of torch for', ', '.join(torch.cuda.get_arch_list())))
    return rows or [('GPU', 'none')]


def nvidia_smi() -> list[str]:
    """Return a line for each GPU that the driver knows; no line without the driver."""
    query = ['nvidia-smi', '--query-gpu=name,memory.total,driver_version', '--format=csv,noheader']
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in run.stdout.splitlines() if line.strip()] if run.returncode == 0 else []


def memory() -> tuple[int | None, int | None]:
    """Return (total, free) memory in bytes; None where the system does not tell.

    The limit of a control group counts (containers, SLURM).
    """
    sizes = {key: int(value.split()[0]) * 1024 for key, value in _lines('/proc/meminfo')}
    total, free = sizes.get('MemTotal'), sizes.get('MemAvailable')
    for files in GROUP_FILES:
        limit, used = map(_number, files)
        if total and limit and used and limit < min(total, UNLIMITED):
            return limit, min(free, max(0, limit - used))
    return total, free


def storage() -> list[tuple[str, str]]:
    """Return the memory, the disk's free space, and the caches (path, size, whether they are writable)."""
    total, free = memory()
    rows = [
        ('memory', f'{amount(total)}, {amount(free)} free'),
        ('disk', f'{amount(shutil.disk_usage(os.getcwd()).free)} free in the working folder'),
    ]
    return rows + [(name, _folder(path)) for name, path in caches().items()]


def caches() -> dict[str, str]:
    """Return the folders of weights and of text embeddings: name -> path."""
    folders = {
        'cache of the hub': os.environ.get('HF_HUB_CACHE')
        or os.path.join(os.environ.get('HF_HOME', '~/.cache/huggingface'), 'hub')
    }
    with contextlib.suppress(ImportError):
        from huggingface_hub import constants

        folders['cache of the hub'] = constants.HF_HUB_CACHE
    folders['cache of fsa_seg'] = os.environ.get('FSA_SEG_CACHE', '~/.cache/fsa_seg')
    folders['cache of CLIP'] = '~/.cache/clip'
    with contextlib.suppress(ImportError):
        import torch

        folders['cache of torch.hub'] = torch.hub.get_dir()
    return {name: os.path.abspath(os.path.expanduser(path)) for name, path in folders.items()}


def environment() -> list[tuple[str, str]]:
    """Return which of the OFFLINE switches and of the VARIABLES are set."""
    return [('offline switches', _variables(OFFLINE)), ('environment', _variables(VARIABLES))]


def amount(count: int | None) -> str:
    """Return a number of bytes as text, in GiB or MiB."""
    if count is None:
        return 'unknown'
    return f'{count / 2**30:.1f} GiB' if count >= 2**30 else f'{count / 2**20:.0f} MiB'


def _sources():
    """Return the head of the digest of the package's sources, or the error that hides it."""
    try:
        from fsa_seg.system.paths import sources_digest

        return sources_digest()[:12]
    except Exception as error:  # a library that the package needs is missing
        return f'unknown ({one_line(error)})'


def _folder(path):
    """Return a folder as text: its path, its size, whether it is writable, and the free space on its disk."""
    parent = path  # the nearest folder that exists
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    writable = 'writable' if os.access(parent, os.W_OK | os.X_OK) else 'NOT writable'
    free = f'{amount(shutil.disk_usage(parent).free)} free'
    if parent != path:
        return f'{_short(path)}: not there yet, {writable}, {free}'
    return f'{_short(path)}: {amount(_size(path))}, {writable}, {free}'


def _size(folder):
    """Return the bytes of a folder's files; a link's target counts where the target lies."""
    size = 0
    for subfolder, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(subfolder, name)).st_size
    return size


def _variables(names):
    """Return variables of the environment as text: the values of those that are set, and the names of the others."""
    present = [f'{name}={os.environ[name]}' for name in names if name in os.environ]
    absent = [name for name in names if name not in os.environ]
    return '; '.join([', '.join(present) or 'none set'] + ([f'not set: {", ".join(absent)}'] if absent else []))


def _short(path):
    """Return a path with ~ in place of the home folder."""
    home = os.path.expanduser('~')
    return '~' + path[len(home) :] if home != '/' and path.startswith(home + os.sep) else path


def _lines(path):
    """Return the lines 'key: value' of a file as pairs; no pair if the file cannot be read."""
    try:
        with open(path, encoding='utf-8') as f:
            return [tuple(part.strip() for part in line.split(':', 1)) for line in f if ':' in line]
    except OSError:
        return []


def _number(path):
    """Return the whole number in a file; None if the file holds none or cannot be read."""
    try:
        with open(path, encoding='utf-8') as f:
            return int(f.read())
    except (OSError, ValueError):  # 'max' is no limit
        return None
