"""The sections run, and say what they say of the right thing; no time is asserted."""
import re

import pytest
import torch
from PIL import Image

from conftest import MINI
from fsa_seg import measurements
from fsa_seg.device import tensor_peak
from fsa_seg.measurements import SECTIONS, Cost, Measurements, plot_growth, report


@pytest.fixture
def toy():
    return Measurements('toy', 'toy', 'fp32', 'cpu', 1, MINI, ['toy'])


def test_stages_add_up(toy):
    rows = toy.stages()
    assert [row['stage'] for row in rows][:3] == ['decode and resize', 'trunk', 'VFM']
    assert sum(float(row['share'].rstrip(' %')) for row in rows[:-1]) == pytest.approx(100, abs=0.5)
    seconds = sum(float(row['time'].split()[0]) for row in rows[:-1])
    assert seconds == pytest.approx(float(rows[-1]['time'].split()[0]), abs=0.01)


def test_flops_of_a_linear_layer(toy):
    assert toy._flops(lambda: torch.nn.functional.linear(torch.zeros(3, 5), torch.zeros(7, 5))) == 2 * 3 * 5 * 7


def test_fsa_is_set_against_the_floor_and_the_dense_evaluation(toy, monkeypatch):
    monkeypatch.setattr(measurements, 'QUERIES', (3, 9, 30))
    rows = toy.fsa()
    assert [row['Q'] for row in rows] == [3, 9, 30]
    assert all(row['dense'].endswith(' s') and float(row['per head: times faster']) > 0 for row in rows[:2])
    assert rows[2]['dense'] == '–'


def test_panels_batches_and_growth(toy, monkeypatch):
    column, maps = toy.panel()
    assert column['rows'].startswith('8: ') and maps['rows'].startswith('14: ')  # seven maps with the one VFM there is
    assert [row['windows at once'] for row in toy.batches()] == [1, 2, 4]
    monkeypatch.setattr(measurements, 'GROWTH', dict(N=[(4, 3), (6, 3), (8, 3)], Q=[(6, 2), (6, 4), (6, 8)]))
    monkeypatch.setattr(measurements, 'LARGE', (16, 5))
    assert toy.large()[0]['N'] == 256
    assert [(row['N'], row['Q']) for row in toy.growth()] == [(16, 3), (36, 3), (64, 3), (36, 2), (36, 4), (36, 8)]


def test_half_precision_gives_almost_all_of_float32s_labels(toy, monkeypatch):
    """With the toy models fp16 agrees on 99.5 % of the pixels at least."""
    monkeypatch.setattr(measurements, 'AGREEMENT', 2)
    for row in toy.precision_agreement():
        assert float(row['fp16 as fp32'].rstrip(' %')) >= 99.5, row
        assert float(row['bf16 as fp32'].rstrip(' %')) >= 90, row


def test_without_a_compiler_the_row_says_so(toy, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError('no compiler')

    monkeypatch.setattr(torch, 'compile', lambda function: refuse)
    monkeypatch.setattr(torch.nn.Module, 'compile', lambda self: None)
    assert toy.compiled()[0]['compiled'] == 'not here: RuntimeError'


def test_throughput(toy):
    assert [row['windows at once'] for row in toy.throughput()] == [1]  # on a CPU `auto` is 1


def test_the_peak_of_tensors():
    """Three tensors of 1 MB, of which two are held at once."""

    def run():
        x = torch.zeros(250_000)
        del x
        return torch.zeros(250_000) + torch.zeros(250_000).sum()

    assert 2e6 <= tensor_peak(run, 'cpu') < 2.1e6


def test_exponents_costs_and_tables(tmp_path):
    assert measurements._exponent([1, 2, 4, 8], [9, 4, 16, 64]) == '2.00'
    cost = Cost([0.3, 0.1, 0.2], 3 * 2**20)
    assert (str(cost), cost.mebibytes) == ('0.200 s (0.100–0.300)', '3')
    rows = [{'over': over, 'N': 2**i, 'Q': 2**i, 'exponent of time': '1.00', 'exponent of memory': '1.00', 'seconds': 2.0**i,
             'bytes': 2**i} for over in 'NQ' for i in range(3)]  # yapf: disable
    text = report({'growth': rows}, 'here')
    assert text.startswith('here\n\nThe last block with FSA over N') and '| NQ |' not in text
    assert len(re.findall(r'^\| [NQ] \|', text, re.M)) == 6 and 'bytes' not in text
    plot_growth(rows, tmp_path / 'growth.png')
    assert Image.open(tmp_path / 'growth.png').size == (900, 360)


def test_the_tool_keeps_sections_and_prints_them(run_tool, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(Measurements, 'batches', lambda self: calls.append(1) or [{'windows at once': 7}])
    monkeypatch.setattr(Measurements.batches, '__doc__', 'Batches.')
    for _ in range(2):
        status, out = run_tool('measure', '--backbone', 'toy', '--vfm', 'toy', '--sections', 'batches')
        assert status == 0 and '| 7 |' in out and 'toy, toy, random weights' in out
    assert len(calls) == 1
    status, out = run_tool('measure', '--sections', 'batch')
    assert status == 1 and "did you mean 'batches'" in out
    assert run_tool('measure', '--repeats', 0)[0] == 1
    assert set(SECTIONS) <= set(dir(Measurements))
