"""Estimates: FLOPs as torch counts them, what a pass shares, rates from files, and schedules."""

import json
import os

import pytest
import torch

import fsa_seg.register  # noqa: F401
from fsa_seg.config.components import component_config, load_component
from fsa_seg.config.compose import compose
from fsa_seg.errors import UserError
from fsa_seg.models.clip import load_clip, trunk
from fsa_seg.models.vfm import build_vfm
from fsa_seg.profiling.measured import product_flops
from fsa_seg.sweep import estimate
from fsa_seg.sweep.estimate import PassCost, Rate, Work, parse_rate, parts_for, pass_work, simulate

from conftest import MINI

SIZES = [(240, 320), (300, 225)]


def cell(method='proxyclip', feedback='fsa', backbone='toy', vfm='toy', **options):
    vfm = vfm if method == 'proxyclip' else None
    return compose('voc21', method, feedback, backbone, vfm, **{'protocol': 'proxyclip', 'data_root': MINI, **options})


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize('name', ['toy', 'clip_vit-b16', 'openclip_vit-h14'])
def test_the_trunk_has_the_flops_that_torch_counts(name):
    config = component_config(load_component('backbone', name), 0)
    with torch.device('meta'):
        clip = load_clip(**config)[0]
        flops = product_flops(lambda: trunk(clip.visual, torch.empty(1, 3, 112, 224)))
    assert estimate.trunk_flops(config, (112, 224)) == pytest.approx(flops, rel=0.01)
    tower, visual, all_of_it = estimate._clip(config['model']), *map(parameters, (clip.visual, clip))
    assert (tower.parameters, tower.text_parameters) == pytest.approx((visual, all_of_it - visual), rel=0.01)


@pytest.mark.parametrize('name', ['toy', 'dinov2_vit-b14', 'dinov3_vit-s16', 'sam_vit-b16'])
@pytest.mark.parametrize('kind', ['tokens', 'q+k'])
def test_a_vfm_has_the_flops_that_torch_counts(name, kind):
    """Relative positions, which the formula leaves out, are within 5 %."""
    config = {**component_config(load_component('vfm', name), 0)}
    config.pop('checkpoint', None)
    with torch.device('meta'):
        vfm = build_vfm(config)
        vfm.__dict__['normalised'] = lambda images: images  # mean and std are real tensors
        flops = product_flops(lambda: vfm(torch.empty(1, 3, 112, 224), kind))
    assert estimate.vfm_flops(config, (112, 224), kind) == pytest.approx(flops, rel=0.05)


def test_published_stages():
    """The figures of docs/performance.md: two windows of trunk and of DINO ViT-B/8."""
    backbone, vfm = (
        component_config(load_component(*name)) for name in (('backbone', 'clip_vit-b16'), ('vfm', 'dino_vit-b8'))
    )
    assert round(2 * estimate.trunk_flops(backbone, (336, 336)) / 1e9) == 152
    assert round(2 * estimate.vfm_flops(vfm, (336, 336)) / 1e9) == 830


def test_cells_of_a_pass_share_trunk_and_vfm():
    models = dict(backbone='clip_vit-b16', vfm='dino_vit-b8')
    pairs = [(method, fsa) for method in ('maskclip', 'sclip', 'clearclip', 'proxyclip') for fsa in (None, 'fsa')]
    configs = [cell(*pair, **models) for pair in pairs]
    alone = [pass_work([config], SIZES).flops for config in configs]
    work = pass_work(configs, SIZES)
    assert max(alone) < work.flops < 1.25 * max(alone) < 0.5 * sum(alone)
    assert pass_work([configs[0]] * 2, SIZES).flops < 1.03 * alone[0]  # labels are made twice, the last block once
    twice = cell('maskclip', dict(rounds=2), **models)
    assert pass_work([twice], SIZES).flops - alone[1] == pytest.approx(alone[1] - alone[0])
    assert work.memory >= pass_work(configs[:1], SIZES).memory + 4 * 85e6  # DINO's weights


def test_windows_follow_the_pipeline():
    """Short side 336: 240×320 becomes 336×448 and 300×225 becomes 448×336, of two windows each."""
    config = cell()
    assert pass_work([config], SIZES).windows == 2
    config.model.window = 0
    assert pass_work([config], SIZES).windows == 1
    config.model.update(window=112, stride=56)
    assert pass_work([config], SIZES[:1]).windows == 5 * 7
    with pytest.raises(UserError, match='size of one image'):
        pass_work([config], [])


def test_a_vfm_that_sees_images_runs_once_per_image():
    config = cell()
    per_window = pass_work([config], SIZES).flops
    vfm = dict(config.model.vfm.proxy)
    config.model.vfm.proxy.scope = 'image'
    work = pass_work([config], SIZES)
    window, image = (estimate.vfm_flops(vfm, sides) for sides in ((336, 336), (336, 448)))
    assert work.flops == pytest.approx(per_window - 2 * window + image)


def test_pamr_counts_for_each_pixel_and_query():
    config = cell('naclip', None, protocol='own')
    assert config.model.refinement.type == 'PAMR'
    queries, pixels = sum(map(len, config.model.words)), 240 * 320
    flops = pass_work([config], SIZES[:1]).flops
    config.model.refinement = None
    pamr = flops - pass_work([config], SIZES[:1]).flops
    assert pamr == pytest.approx(estimate.PAMR_FLOPS * 10 * 16 * queries * pixels)


def test_a_vfm_that_cannot_be_built_without_weights_is_left_out(capsys):
    assert estimate.vfm_flops(dict(type='NoSuchVFM', model='x'), (112, 112)) == 0
    assert 'NoSuchVFM is left out' in capsys.readouterr().err


def test_given_rates():
    assert parse_rate('NVIDIA A100=90') == Rate('NVIDIA A100', 90e12, 90e12, 90e12, 'as given')
    for text in ('A100', 'A100=fast', '=90', 'A100=0', 'A100=-1', 'A100=nan'):
        with pytest.raises(UserError, match='DEVICE=TFLOP/s'):
            parse_rate(text)


def test_rates_of_files(tmp_path):
    """Finished tasks come before the measured section; broken files and failed tasks are left out."""
    for folder in ('measure', 'sweep/p'):
        os.makedirs(tmp_path / folder)
    rows = [dict(device=device, rate=rate) for device in ('A', 'B') for rate in (3.0, 9.0, 6.0)]
    for device in 'AB':
        path = tmp_path / 'measure' / f'rates_{device}.json'
        path.write_text(json.dumps([row for row in rows if row['device'] == device]))
    seconds = [10, 20, 30, 40, 1]
    for i, (time, images) in enumerate(zip(seconds, [20, 20, 30, 40, 2])):
        outcome = dict(state='done', flops=400.0, images=images, seconds=time, device='A')
        (tmp_path / f'sweep/p/{i}.json').write_text(json.dumps(outcome))
    failed = dict(state='failed', flops=400.0, images=20, seconds=1, device='C')
    (tmp_path / 'sweep/p/f.json').write_text(json.dumps(failed))
    (tmp_path / 'sweep/p/g.json').write_text('{"state": "do')
    (tmp_path / 'sweep/p/h.json').write_text('[]')
    first, second = estimate.measured_rates(str(tmp_path))
    assert first[:2] == ('A', 5 * 400 / sum(seconds)) and first.source == '5 finished tasks'
    assert (first.low, first.high) == (pytest.approx(11.0), pytest.approx(34.0))  # of 10, 13.3, 20 and 40
    assert second == Rate('B', 6.0, 3.0, 9.0, 'fsa-seg measure')


def test_workers_take_the_longest_task_first():
    assert simulate([3, 3, 2, 2, 2], 2) == (7, pytest.approx(1 - 12 / 14), 3)
    assert simulate([1, 1, 2], 2).makespan == 2
    assert simulate([5], 4) == (5, 0.75, 5)
    assert simulate([], 3) == (0, 0, 0)
    with pytest.raises(UserError, match='at least 1'):
        simulate([1], 0)


def test_parts_keep_the_tail_short():
    """No part is longer than a quarter of the fair share, but for a part's least images and least time."""
    assert parts_for(100, 5000, 1, 1000) == 1
    assert parts_for(6000, 5000, 8, 48000) == 4
    assert parts_for(6000, 50, 8, 48000) == 2  # 20 images each at least
    assert parts_for(100, 5000, 1000, 1000) == 3  # two loads each at least
    passes = [PassCost('b', 'd', 8, 5000, Work(flops * 1e12, 2, 10)) for flops in (40, 1, 1, 1)]
    rate = Rate('d', 1e13, 1e13, 1e13, 'as given')
    whole, split = (simulate(estimate.task_seconds(passes, rate, workers), 8) for workers in (None, 8))
    assert split.makespan < 0.25 * whole.makespan and split.idle < 0.2 < whole.idle


def test_tables():
    passes = [PassCost('b', data, 8, 1000, Work(36e12, 2, 4 * 10**9)) for data in ('x', 'x', 'y')]
    rates = [Rate('A', 1e13, 1e13, 1e13, 'as given'), Rate('B', 2e13, 1e13, 4e13, 'measured')]
    lines = estimate.costs_table(passes, rates).splitlines()
    assert lines[2] == '| b | x | 16 | 2 | 2000 | 2.00 | 1.00 (0.50–2.00) | 4.0 |'
    assert lines[-1].startswith('| all |  | 24 | 3 | 3000 | 3.00 |')
    lines = estimate.schedule_table(passes, rates[0], (1, 8)).splitlines()
    assert lines[2].startswith('| 1 | no | 3 | 3.0 h | 0.0 % |') and lines[-1].startswith('| 8 | by images |')
