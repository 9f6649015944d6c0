"""What a machine has, as pairs of text (what, value): versions, CPU, GPUs, memory, caches, disk, environment.

Python's own library alone is imported here; any other is imported where it is needed, so that a missing library costs
its own lines alone.
"""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
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
    'tqdm',
)
FINGERPRINT_PACKAGES = tuple(
    name for name in PACKAGES if name not in ('triton', 'scipy', 'tqdm')
)  # a fingerprint names these
INSTRUCTIONS = (
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
BF16_UNITS = ('amx_bf16', 'avx512_bf16', 'bf16')  # flags of CPUs that multiply bf16 matrices
OFFLINE = ('HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE', 'HF_DATASETS_OFFLINE')
VARIABLES = (
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
    ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory.current'),  # limit and use, version 2 and 1
    ('/sys/fs/cgroup/memory/memory.limit_in_bytes', '/sys/fs/cgroup/memory/memory.usage_in_bytes'),
)
UNLIMITED = 2**60  # bytes; a control group's limit above is none


def report():
    """Return pairs (what, value) of text about the machine; what cannot be read says so, and the rest is there."""
    rows = []
    for section in (software, processor, graphics, storage, environment):
        try:
            rows += section()
        except Exception as error:  # a library that is missing or broken
            rows.append((section.__name__, f'cannot be read: {one_line(error)}'))
    return rows


def software():
    """Return Python's, the libraries' and the suite's versions."""
    found = []
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f'{name} {importlib.metadata.version(name)}')
    rows = [
        ('system', platform.platform()),
        ('Python', f'{platform.python_version()}, {_short(sys.executable)}'),
        ('libraries', ', '.join(found)),
        ('fsa_seg', f'{_short(ROOT)}, sources {_sources()}'),
    ]
    with contextlib.suppress(ImportError):
        import torch

        cuda, cudnn = torch.version.cuda or '–', torch.backends.cudnn.version() or '–'
        onednn = 'yes' if torch.backends.mkldnn.is_available() else 'no'
        rows.append(('torch is built with', f'CUDA {cuda}, cuDNN {cudnn}, oneDNN {onednn}'))
    return rows


def processor():
    """Return the CPU's name, cores, threads and instruction sets."""
    lines = _lines('/proc/cpuinfo')
    packages, numbers = ([value for key, value in lines if key == name] for name in ('physical id', 'core id'))
    cores = len(set(zip(packages, numbers)))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
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


def cpu_name():
    """Return the CPU's name, or else its architecture's."""
    names = (value for key, value in _lines('/proc/cpuinfo') if key == 'model name')
    return next(names, platform.processor() or platform.machine())


def cpu_flags():
    """Return the CPU's flags as a set of str; empty where the system does not tell."""
    return {flag for key, value in _lines('/proc/cpuinfo') if key in ('flags', 'Features') for flag in value.split()}


def graphics():
    """Return each GPU's name, memory, capability, and the driver's version."""
    seen = [('nvidia-smi', line) for line in nvidia_smi()]
    import torch

    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        seen.append(
            (
                f'GPU {i}',
                f'{about.name}, {amount(total)} ({amount(free)} free), capability '
                f'{about.major}.{about.minor}, {about.multi_processor_count} multiprocessors',
            )
        )
    if torch.cuda.is_available():
        seen.append(('kernels of torch for', ', '.join(torch.cuda.get_arch_list())))
    return seen or [('GPU', 'none')]


def nvidia_smi():
    """Return a line for each GPU that the driver knows; none without the driver."""
    query = ['nvidia-smi', '--query-gpu=name,memory.total,driver_version', '--format=csv,noheader']
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in found.stdout.splitlines() if line.strip()] if found.returncode == 0 else []


def memory():
    """Return the bytes of memory in all, and those that are free, None where the system does not tell.

    A control group's limit counts where there is one (containers, SLURM).
    """
    held = {key: int(value.split()[0]) * 1024 for key, value in _lines('/proc/meminfo')}
    total, free = held.get('MemTotal'), held.get('MemAvailable')
    for limit, used in GROUP_FILES:
        limit, used = _number(limit), _number(used)
        if total and limit and used and limit < min(total, UNLIMITED):
            return limit, min(free, max(0, limit - used))
    return total, free


def storage():
    """Return memory, caches (path, size, whether they can be written to) and what is free on the disk."""
    total, free = memory()
    rows = [
        ('memory', f'{amount(total)}, {amount(free)} free'),
        ('disk', f'{amount(shutil.disk_usage(os.getcwd()).free)} free in the working folder'),
    ]
    return rows + [(name, _folder(path)) for name, path in caches().items()]


def caches():
    """Return the folders of weights and of text embeddings, as a dict of name -> path."""
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


def environment():
    """Return which offline switches, and which variables that can change a number or a place, are set."""
    return [('offline switches', _variables(OFFLINE)), ('environment', _variables(VARIABLES))]


def amount(count):
    """Return bytes as text."""
    if count is None:
        return 'unknown'
    return f'{count / 2**30:.1f} GiB' if count >= 2**30 else f'{count / 2**20:.0f} MiB'


def one_line(error):
    """Return an exception as one line of at most 300 characters."""
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:300]


def _sources():
    try:
        from fsa_seg.config.fingerprint import sources_digest

        return sources_digest()[:12]
    except Exception as error:  # the package needs libraries
        return f'unknown ({one_line(error)})'


def _folder(path):
    """Return what is to be said of a folder: its size, whether it can be written to, what is free there."""
    there = path
    while not os.path.exists(there):
        there = os.path.dirname(there)
    writable = 'writable' if os.access(there, os.W_OK | os.X_OK) else 'NOT writable'
    free = f'{amount(shutil.disk_usage(there).free)} free'
    if there != path:
        return f'{_short(path)}: not there yet, {writable}, {free}'
    return f'{_short(path)}: {amount(_size(path))}, {writable}, {free}'


def _size(folder):
    """Return the bytes of a folder's files; those that links name are counted where they lie."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(place, name)).st_size
    return size


def _variables(names):
    given = [f'{name}={os.environ[name]}' for name in names if name in os.environ]
    absent = [name for name in names if name not in os.environ]
    return '; '.join([', '.join(given) or 'none set'] + ([f'not set: {", ".join(absent)}'] if absent else []))


def _short(path):
    home = os.path.expanduser('~')
    return '~' + path[len(home) :] if home != '/' and path.startswith(home + os.sep) else path


def _lines(path):
    """Return the lines 'key: value' of a file as pairs; none where it cannot be read."""
    try:
        with open(path, encoding='utf-8') as f:
            return [tuple(part.strip() for part in line.split(':', 1)) for line in f if ':' in line]
    except OSError:
        return []


def _number(path):
    try:
        with open(path, encoding='utf-8') as f:
            return int(f.read())
    except (OSError, ValueError):  # 'max' is no limit
        return None
