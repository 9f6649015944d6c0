"""The doctor's checks are ok here, a planted fault makes each of them WRONG, and nothing ends the doctor."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from fsa_seg.models import segmentor
from fsa_seg.ops import feedback
from fsa_seg.profiling import costs, doctor, self_checks
from fsa_seg.profiling.doctor import CHECKS, Check, run_check
from fsa_seg.system import machine
from fsa_seg.system.paths import sources_digest

from conftest import ROOT

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason='a machine without a GPU is meant')
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


@pytest.fixture
def toy(monkeypatch):
    """Toy models in place of real sizes."""
    monkeypatch.setattr(doctor, 'BACKBONES', {'toy': 0})
    monkeypatch.setattr(doctor, 'VFM', 'toy')


def verdicts(name):
    """Return a check's verdicts as a dict of its part -> (verdict, detail)."""
    rows, _ = run_check(name, quick=True)
    return {row.check.removeprefix(name).removeprefix(': '): row[1:] for row in rows}


def test_nothing_is_wrong_here(run_tool, tmp_path, toy):
    names = [name for name in CHECKS if name not in ('bf16', 'processes')]
    status, out = run_tool('doctor', '--quick', '--only', *names, '--out', 'folder/report.json')
    report = json.loads((tmp_path / 'folder' / 'report.json').read_text())
    assert status == 0 and 'none is WRONG' in out
    assert {row['check'].split(':')[0] for row in report['checks']} == set(names) == set(report['seconds'])
    assert all(row['verdict'] == 'ok' or row['verdict'].startswith('skipped (') for row in report['checks'])
    assert sum(row['check'].startswith('golden: ') and row['verdict'] == 'ok' for row in report['checks']) == 5
    graphics = 'GPU 0' if torch.cuda.is_available() else 'GPU'
    assert {'CPU', graphics, 'memory', 'cache of the hub'} <= set(report['machine'])
    for row in report['checks']:
        assert f'| {row["check"]} | {row["verdict"]} |' in out


def wrong_constant(monkeypatch):
    isolate = feedback.isolate
    monkeypatch.setattr(feedback, 'isolate', lambda z, uniform, *scales: isolate(z, 1.1 * uniform, *scales))


def wrong_attention(monkeypatch):
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(F, 'scaled_dot_product_attention', lambda *inputs, **options: 1.1 * attend(*inputs, **options))


def rounded_convolution(monkeypatch):
    conv2d = F.conv2d
    monkeypatch.setattr(F, 'conv2d', lambda image, *args, **options: conv2d(image.half().float(), *args, **options))


def fast_products(monkeypatch):
    monkeypatch.setattr(torch, 'get_float32_matmul_precision', lambda: 'high')


def coarse_half_precision(monkeypatch):
    load_backbone = segmentor._load_backbone

    def load_coarsely(config, precision):
        clip, *values = load_backbone(config, precision)
        if precision == 'bf16':
            noise = torch.randn(clip.visual.proj.shape, generator=torch.Generator().manual_seed(0))
            clip.visual.proj.data += 0.2 * noise.to(clip.visual.proj)
        return clip, *values

    monkeypatch.setattr(segmentor, '_load_backbone', load_coarsely)
    monkeypatch.setattr(self_checks, 'LABELS', dict(bf16=99.0))  # fp16 is slow on a CPU


def missing_library(monkeypatch):
    monkeypatch.setattr(self_checks, 'LIBRARIES', ('torch', 'no_such_library'))


def old_version(monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: '0.1' if name.startswith('timm') else version(name))


def wrong_sum(monkeypatch):
    monkeypatch.setattr(doctor, 'PROCESS', 'print("sum 4.0 4.0")')


def cosines_that_are_no_numbers(monkeypatch):
    window_results = costs.window_results

    def nan_cosines(*arguments):
        for i, window, *values in window_results(*arguments):
            yield i, window._replace(cosines=window.cosines * float('nan')), *values

    monkeypatch.setattr(costs, 'window_results', nan_cosines)


def driver_without_torch(monkeypatch):
    monkeypatch.setattr(self_checks, 'nvidia_smi', lambda: ['Some GPU, 8192 MiB, 500.1'])
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)


def waiting_panel(monkeypatch):
    from fsa_seg.models.shared_pass import SharedPass

    predict = SharedPass.predict

    def waiting(self, inputs, data_samples):
        float(inputs[0].sum())
        return predict(self, inputs, data_samples)

    monkeypatch.setattr(SharedPass, 'predict', waiting)


@pytest.mark.parametrize(
    'name, part, fault, detail',
    [
        ('golden', 'b16_seed1', wrong_constant, 'proxyclip+fsa: '),
        ('golden', 'h14_seed1', wrong_attention, 'sclip: '),
        ('dense', '', wrong_constant, 'maskclip+fsa: '),
        ('sdpa', 'math', wrong_attention, 'float32'),
        ('tf32', '', rounded_convolution, 'rounded: conv2d;'),
        ('tf32', '', fast_products, 'matmul precision high'),
        ('labels', 'ProxyCLIP + FSA, bf16', coarse_half_precision, 'at least 99.0 %'),
        ('packages', 'no_such_library', missing_library, "No module named 'no_such_library'"),
        ('packages', 'versions', old_version, 'timm 0.1 is outside'),
        ('processes', 'gloo', wrong_sum, 'sum 4.0 4.0'),
        ('window', '', cosines_that_are_no_numbers, 'not finite'),
        pytest.param('gpu', '', driver_without_torch, 'Some GPU', marks=no_gpu),
        pytest.param('sync', '', waiting_panel, 'synchroniz', marks=gpu),
    ],
)
def test_a_planted_fault_is_wrong(name, part, fault, detail, monkeypatch, toy):
    fault(monkeypatch)
    verdict, text = verdicts(name)[part]
    assert verdict == 'WRONG' and detail in text, (verdict, text)


def test_one_wrong_verdict_ends_with_status_1_and_a_crash_is_a_row(run_tool, monkeypatch):

    def crash(quick):
        yield 'first', True, 'fine'
        raise ImportError('No module named\n"mmcv"')

    monkeypatch.setitem(CHECKS, 'dense', Check(crash, 1, 1))
    status, out = run_tool('doctor', '--only', 'dense', 'gpu')
    assert status == 1 and '| dense: first | ok | fine |' in out and '| gpu |' in out
    assert '| dense | WRONG | ImportError: No module named "mmcv": install the requirements' in out
    assert '1 WRONG: dense' in out


def test_options(run_tool, tmp_path):
    status, out = run_tool('doctor', '--only', 'goldn')
    assert status == 1 and "unknown check 'goldn' (did you mean 'golden'?)" in out
    for path in ('.', 'file/report.json'):
        (tmp_path / 'file').write_text('')
        status, out = run_tool('doctor', '--only', 'gpu', '--out', path)
        assert status == 1 and 'error: ' in out and '| gpu |' not in out


def test_what_quick_leaves_out_is_said(run_tool, monkeypatch):
    for name in CHECKS:
        monkeypatch.setitem(CHECKS, name, CHECKS[name]._replace(run=lambda quick: iter([('', True, '')])))
    status, out = run_tool('doctor', '--quick')
    assert status == 0 and '| bf16 | skipped (--quick) |' in out and f'{len(CHECKS)} verdicts' in out
    assert '| bf16 | ok |' in run_tool('doctor', '--quick', '--only', 'bf16')[1]


def test_a_missing_library_costs_its_own_checks_alone(tmp_path):
    """The package cannot be imported; the report is complete, and the checks that need no package run."""
    (tmp_path / 'mmcv.py').write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    tool, names = os.path.join(ROOT, 'tools', 'doctor.py'), ('packages', 'golden', 'sdpa')
    run = subprocess.run(
        [sys.executable, tool, '--quick', '--only', *names],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and '| CPU | ' in run.stdout and '| sdpa: math | ok |' in run.stdout
    error = 'ImportError: libGL.so.1: cannot open shared object file: OpenCV needs libGL'
    assert f'| packages: mmcv | WRONG | {error}' in run.stdout and f'| golden | WRONG | {error}' in run.stdout


def test_before_anything_is_installed(tmp_path):
    """Python's own library alone is installed."""
    command = [sys.executable, '-S', os.path.join(ROOT, 'tools', 'doctor.py'), '--out', 'report.json']
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    report = json.loads((tmp_path / 'report.json').read_text())
    assert run.returncode == 1 and 'Traceback' not in run.stderr and 'CPU' in report['machine']
    for name in ('packages: torch', 'packages: mmcv', 'golden', 'window', 'processes'):
        row = next(row for row in report['checks'] if row['check'] == name)
        assert row['verdict'] == 'WRONG' and 'install the requirements' in row['detail'], row
    assert {row['check'].split(':')[0] for row in report['checks']} == set(CHECKS)


@pytest.mark.parametrize('error, verdict', [('No available kernel. Aborting execution.', 'ok'), ('no plan', 'WRONG')])
def test_a_back_end_may_lack_a_kernel_but_not_fail(error, verdict, monkeypatch):
    attend = F.scaled_dot_product_attention

    def refuse(*inputs):
        if inputs[0].dtype == torch.bfloat16:
            raise RuntimeError(error)
        return attend(*inputs)

    monkeypatch.setattr(F, 'scaled_dot_product_attention', refuse)
    outcome, detail = verdicts('sdpa')['math']
    assert outcome == verdict and (error in detail or 'float16' in detail and 'bfloat16' not in detail)


@pytest.mark.parametrize('name, constant', [('golden', 'GOLDEN'), ('labels', 'MINI'), ('tf32', 'MINI')])
def test_without_a_clone_checks_are_skipped(name, constant, monkeypatch, tmp_path):
    monkeypatch.setattr(self_checks, constant, str(tmp_path / 'missing'))
    missing = os.path.relpath(tmp_path / 'missing', ROOT)
    reason = f'{missing} is missing, which ships with the package: install it again'
    assert verdicts(name) == {'': (f'skipped ({reason})', '')}


def test_processes_that_hang_are_ended(monkeypatch):
    runs, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, 'Popen', lambda *args, **options: runs.append(popen(*args, **options)) or runs[-1])
    monkeypatch.setattr(doctor, 'PROCESS', 'import time; time.sleep(60)')
    monkeypatch.setattr(doctor, 'LIMIT', 0.5)
    assert verdicts('processes')['gloo'] == ('WRONG', 'no sum in 0.5 s; the processes were ended')
    assert len(runs) == 2 and all(run.returncode == -9 for run in runs)


def test_two_processes_add(monkeypatch):
    assert verdicts('processes')['gloo'][0] == 'ok'


def test_bf16_where_the_cpu_has_units_for_it(monkeypatch, toy):
    monkeypatch.setattr(doctor, 'used_device', lambda: 'cpu')
    monkeypatch.setattr(doctor, 'cpu_flags', lambda: {'avx2'})
    assert verdicts('bf16') == {'': ('skipped (this CPU has no bf16 matrix units)', '')}
    monkeypatch.setattr(doctor, 'cpu_flags', lambda: {'amx_bf16'})
    rows = verdicts('bf16')
    assert 'times as fast as fp32' in rows['trunk of toy'][1] and 'amx_bf16' in rows['toy'][1]
    assert rows['labels'][0] == 'ok' and 'pixels of the toy move' in rows['labels'][1]


def test_a_window_that_does_not_fit_is_skipped(monkeypatch, toy):
    monkeypatch.setattr(doctor, 'memory', lambda: (2**33, 2**30))
    monkeypatch.setattr(doctor, 'BACKBONES', {'toy': 2})
    assert verdicts('window')['toy'][0] == 'skipped (needs 2 GiB of memory, 1.0 GiB are free)'


def test_windows_in_batches_are_told_beside_one_at_a_time(toy):
    rows, _ = run_check('window')
    assert 'images/s with 1 window at once' in rows[0].detail
    if not torch.cuda.is_available():
        assert 'images/s with 2 windows at once' in rows[0].detail


def test_the_machine(monkeypatch):
    monkeypatch.setenv('NVIDIA_TF32_OVERRIDE', '1')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr(machine, 'processor', lambda: {}['x'])
    monkeypatch.setattr(machine.processor, '__name__', 'processor')
    rows = dict(machine.report())
    assert rows['processor'] == "cannot be read: KeyError: 'x'"
    assert rows['offline switches'].startswith('HF_HUB_OFFLINE=1; not set: TRANSFORMERS_OFFLINE')
    assert 'NVIDIA_TF32_OVERRIDE=1' in rows['environment']
    assert f'torch {torch.__version__.split("+")[0]}' in rows['libraries']
    assert machine._sources() == sources_digest()[:12]


def test_folders_and_memory(monkeypatch, tmp_path):
    (tmp_path / 'file').write_bytes(b'0' * 3 * 2**20)
    assert machine._folder(str(tmp_path)).startswith(f'{tmp_path}: 3 MiB, writable, ')
    assert 'not there yet, writable' in machine._folder(str(tmp_path / 'a' / 'b'))
    lines = [('MemTotal', '8388608 kB'), ('MemAvailable', '4194304 kB')]
    monkeypatch.setattr(machine, '_lines', lambda path: lines)
    monkeypatch.setattr(machine, '_number', lambda path: None)
    assert machine.memory() == (2**33, 2**32)
    monkeypatch.setattr(machine, '_number', lambda path: 2**31 if path.endswith(('max', 'limit_in_bytes')) else 2**30)
    assert machine.memory() == (2**31, 2**30)
    monkeypatch.setattr(machine, '_lines', lambda path: [])
    assert machine.memory() == (None, None)
    assert machine.amount(None) == 'unknown' and machine.amount(3 * 2**29) == '1.5 GiB'
