"""The sections run, and measure the right functions; no test asserts a time."""

import re

import pytest
import torch
from PIL import Image

from fsa_seg.models.segmentor import check_compiler
from fsa_seg.ops.affinity import LastAttention, affinity_product, pack_attention
from fsa_seg.ops.label_propagation import patch_graph
from fsa_seg.profiling import costs, whole_image_costs
from fsa_seg.profiling.costs import SECTIONS, Cost, CostTables, plot_growth, report
from fsa_seg.profiling.measured import product_flops, tensor_peak

from conftest import MINI


@pytest.fixture
def small_windows(monkeypatch):
    """Windows of 112 pixels, on images of the protocol's size."""
    settings = costs.protocol_settings
    monkeypatch.setattr(costs, 'protocol_settings', lambda *arguments: {**settings(*arguments), 'window': 112})


@pytest.fixture
def toy(small_windows):
    return CostTables('toy', 'toy', 'fp32', 'cpu', 1, MINI, ['toy'])


def test_stages_add_up(toy):
    rows = toy.stages()
    assert [row['stage'] for row in rows][:3] == ['decode and resize', 'trunk', 'VFM']
    assert sum(float(row['share'].rstrip(' %')) for row in rows[:-1]) == pytest.approx(100, abs=0.5)
    seconds = sum(float(row['time'].split()[0]) for row in rows[:-1])
    assert seconds == pytest.approx(float(rows[-1]['time'].split()[0]), abs=0.01)


def test_flops_are_those_of_the_formula(toy):
    """Each block of the trunk has 24·T·D² + 4·T²·D, and the patch embedding has 2·N·D·3·16²."""
    model, _ = toy._member('maskclip', None)
    tokens, width, blocks = 1 + 6 * 4, 160, len(model.visual.transformer.resblocks) - 1
    expected = blocks * (24 * tokens * width**2 + 4 * tokens**2 * width) + 2 * 24 * width * 3 * 16**2
    assert product_flops(lambda: model.trunk(model.visual, torch.zeros(1, 3, 96, 64))) == expected


def test_ways_to_prune_agree(toy, monkeypatch):
    monkeypatch.setattr(costs, 'PRUNED', (12, 5))
    rows = toy.pruning()
    assert rows[0]['way'].startswith('top-k') and rows[0]['entries kept unlike sort'] == 0
    assert all(row['entries kept unlike sort'] <= 144 for row in rows)  # bisection ends at its last step


def test_half_precision_runs(small_windows, monkeypatch):
    """Half precision is the default on a GPU; it leaves out the dense references."""
    monkeypatch.setattr(costs, 'QUERIES', (3, 9))
    monkeypatch.setattr(costs, 'GROWTH', dict(N=[(4, 3), (6, 3), (8, 3)]))
    half = CostTables('toy', 'toy', 'bf16', 'cpu', 1, MINI, ['toy'])
    assert [row['dense'] for row in half.fsa()] == ['–', '–']
    assert half.growth() and half.stages()


def test_fsa_is_set_against_the_floor_and_the_dense_evaluation(toy, monkeypatch):
    monkeypatch.setattr(costs, 'QUERIES', (3, 9, 30))
    rows = toy.fsa()
    assert [row['Q'] for row in rows] == [3, 9, 30]
    assert all(row['dense'].endswith(' s') and float(row['per head: times faster'].split()[0]) > 0 for row in rows[:2])
    assert rows[2]['dense'] == '–'


def test_the_newer_methods_are_set_against_the_trunk_and_the_dense_evaluation(monkeypatch):
    """The dense reference runs for all but SCLIP, and FSA for all but SFR."""
    monkeypatch.setattr(costs, 'METHOD_SIDES', (6,))
    rows = CostTables('toy', 'toy', 'fp32', 'cpu', 1, MINI, ['toy']).methods()
    assert [row['method'] for row in rows] == list(costs.FIELD) and {row['N'] for row in rows} == {36}
    assert [row['method'] for row in rows if row['dense'] == '–'] == ['SCLIP']
    assert [row['method'] for row in rows if row['with FSA, of the trunk'] == '–'] == ['ResCLIP + SFR']
    assert all(float(row['of the trunk'].split()[0]) > 0 for row in rows)


def test_stages_on_whole_images_are_set_against_their_references(monkeypatch):
    """A stage that would take too long, or a dense evaluation that would hold too much, is left out."""
    monkeypatch.setattr(whole_image_costs, 'IMAGES', ((48, 64), (64, 96)))
    monkeypatch.setattr(whole_image_costs, 'AFFINITY_IMAGE', (64, 96))
    monkeypatch.setattr(whole_image_costs, 'AFFINITY_VFM', 'toy')
    monkeypatch.setattr(whole_image_costs, 'WINDOW', 32)
    monkeypatch.setattr(whole_image_costs, 'STRIDE', 16)
    monkeypatch.setattr(whole_image_costs, 'QUERIES', 9)
    monkeypatch.setattr(whole_image_costs, 'CELLS', 6)
    monkeypatch.setattr(whole_image_costs, 'DENSE_BYTES', 24 * 96**2)  # 6 windows of 16 patches
    tables = CostTables('toy', 'toy', 'fp32', 'cpu', 1, MINI, ['toy'])
    rows = tables.whole_image()
    assert [(row['image'], row['windows']) for row in rows] == [('48×64', 6)] * 8 + [('64×96', 15)] * 9
    assert [row['stage'] for row in rows[:8]] == [row['stage'] for row in rows[8:-1]]
    assert all(float(row['of the reference'].split()[0]) >= 0 and row['memory, MiB'] for row in rows)
    dense = [row['dense'] for row in rows if 'graph +' in row['stage']]
    assert dense[0].endswith(' s') and dense[1] == 'left out: 0 GiB'
    assert rows[-1]['stage'].startswith('Trident: C + D') and rows[-1]['dense'].endswith(' s')
    monkeypatch.setattr(whole_image_costs, 'LIMIT', 0.0)
    rows = tables.whole_image()
    assert all(row['time'].endswith(' s') for row in rows[:8])
    assert all(row['time'].startswith('left out: some') for row in rows[8:16])


def test_the_dense_evaluations_of_whole_images_are_ours():
    generator = torch.Generator().manual_seed(0)
    features, centres, scores = (torch.randn(30, count, generator=generator) for count in (8, 2, 3))
    graph = whole_image_costs.dense_graph(features, centres)
    ours = patch_graph(features, centres).product(scores)
    torch.testing.assert_close(graph @ scores, ours, rtol=1e-4, atol=1e-5)
    parts = [torch.randn(1, 4, 5, 2, count, generator=generator) for count in (6, 6, 6, 4, 5)]
    attention, values = pack_attention(LastAttention(*parts)), torch.randn(12, 7, generator=generator)
    dense = whole_image_costs.dense_affinity_product(attention, (3, 4), values, 1.2)
    torch.testing.assert_close(dense, affinity_product(attention, (3, 4), values, 1.2), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_vfm_once_per_image_is_set_against_windows(toy, monkeypatch):
    """The toy world's mIoU are those of the goldens, and most labels are equal."""
    monkeypatch.setattr(whole_image_costs, 'SCOPES', (((48, 64), 32, 16),))
    monkeypatch.setattr(whole_image_costs, 'TOY_DATASETS', ('voc21',))
    time, memory, plain, fsa = toy.image_scope()
    assert time['windows'] == memory['windows'] == 6 and time['windows over once'] != '–'
    assert (plain['on windows'], fsa['on windows']) == ('30.25', '37.52')
    assert all(90 < float(row['equal labels'].rstrip(' %')) < 100 for row in (plain, fsa))


def test_shared_passes_batches_and_growth(toy, monkeypatch):
    column, maps = toy.shared_pass()
    assert column['rows'].startswith('8: ') and maps['rows'].startswith('14: ')  # seven maps with the toy VFM
    assert [row['windows at once'] for row in toy.batches()] == [1, 2, 4]
    monkeypatch.setattr(costs, 'GROWTH', dict(N=[(4, 3), (6, 3), (8, 3)], Q=[(6, 2), (6, 4), (6, 8)]))
    monkeypatch.setattr(costs, 'LARGE', (16, 5))
    assert toy.large()[0]['N'] == 256
    assert [(row['N'], row['Q']) for row in toy.growth()] == [(16, 3), (36, 3), (64, 3), (36, 2), (36, 4), (36, 8)]


def test_half_precision_gives_almost_all_of_float32s_labels(toy, monkeypatch):
    """With the toy models fp16 agrees on at least 99.5 % of the pixels."""
    monkeypatch.setattr(costs, 'AGREEMENT', 1)
    for row in toy.precision_agreement():
        assert float(row['fp16 as fp32'].rstrip(' %')) >= 99.5, row
        assert float(row['bf16 as fp32'].rstrip(' %')) >= 90, row


def test_without_a_compiler_the_row_says_so(toy, monkeypatch):
    def refuse(function):
        raise RuntimeError('no compiler')

    monkeypatch.setattr(torch, 'compile', refuse)
    check_compiler.cache_clear()
    assert 'torch.compile does not work here' in toy.compiled()[0]['compiled']


def test_throughput(toy):
    assert [row['windows at once'] for row in toy.throughput()] == [1]  # on a CPU `auto` is 1


def test_rates_are_of_the_flops_that_estimates_count(toy):
    *towers, image = toy.rates()
    assert [row['work'] for row in towers] == ['trunk', 'VFM']
    assert int(towers[0]['GFLOP']) <= int(towers[1]['GFLOP']) < int(image['GFLOP'])
    assert all(float(row['GFLOP/s']) == pytest.approx(row['rate'] / 1e9, abs=1) for row in (*towers, image))


def test_the_peak_of_tensors():
    """A run makes three tensors of 1 MB, and holds at most two tensors at once."""

    def run():
        x = torch.zeros(250_000)
        del x
        return torch.zeros(250_000) + torch.zeros(250_000).sum()

    assert 2e6 <= tensor_peak(run, 'cpu') < 2.1e6


def test_exponents_costs_and_tables(tmp_path):
    assert costs._exponent([1, 2, 4, 8], [9, 4, 16, 64]) == '2.00'
    cost = Cost([0.3, 0.1, 0.2], 3 * 2**20)
    assert (str(cost), cost.mebibytes) == ('0.200 s (0.100–0.300)', '3')
    assert cost.over(Cost([0.1, 0.1, 0.4], 0)) == '1.00 (0.50–3.00)'
    assert Cost([2.0], 0).over(Cost([3.0], 0), 3, 1) == '2.0'
    rows = [
        {
            'over': over,
            'N': 2**i,
            'Q': 2**i,
            'exponent of time': '1.00',
            'exponent of memory': '1.00',
            'seconds': 2.0**i,
            'bytes': 2**i,
        }
        for over in 'NQ'
        for i in range(3)
    ]
    text = report({'growth': rows}, 'here')
    assert text.startswith('here\n\nThe last block with FSA over N') and '| NQ |' not in text
    assert len(re.findall(r'^\| [NQ] \|', text, re.M)) == 6 and 'bytes' not in text
    plot_growth(rows, tmp_path / 'growth.png')
    assert Image.open(tmp_path / 'growth.png').size == (900, 360)


def test_the_tool_keeps_sections_and_prints_them(run_tool, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(CostTables, 'batches', lambda self: calls.append(1) or [{'windows at once': 7}])
    monkeypatch.setattr(CostTables.batches, '__doc__', 'Batches.')
    for _ in range(2):
        status, out = run_tool('measure', '--backbone', 'toy', '--vfm', 'toy', '--sections', 'batches')
        assert status == 0 and '| 7 |' in out and 'toy, toy, random weights' in out
    assert len(calls) == 1
    status, out = run_tool('measure', '--sections', 'batch')
    assert status == 1 and "did you mean 'batches'" in out
    assert run_tool('measure', '--repeats', 0)[0] == 1
    assert set(SECTIONS) <= set(dir(CostTables))
