"""Methods and stages that see whole images, in a pass: what they share, what they refuse, and what the golden says."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn

from fsa_seg.config.compose import compose
from fsa_seg.config.fingerprint import _method_settings, cell_hash, fingerprint
from fsa_seg.config.saved import from_json, to_json
from fsa_seg.errors import UserError
from fsa_seg.evaluation import passes
from fsa_seg.evaluation.passes import prepare, run_cells, run_pass
from fsa_seg.methods import make_method, stage_names
from fsa_seg.models.segmentor import stretched_size
from fsa_seg.models.shared_pass import Member, merged_images
from fsa_seg.ops.attention import proxy_mean
from fsa_seg.ops.label_propagation import patch_graph
from fsa_seg.ops.windows import Layout, OverlapAdd, PixelMap, Window, windows
from fsa_seg.profiling.self_checks import EXACT, load_golden, whole_image_differences

from conftest import MINI, ROOT

WORDS = [['sky', 'wall'], ['cat'], ['grass'], ['road']]
METHODS = ['lposs', dict(type='lposs', pixels=True), 'trident', 'corrclip', 'proxyclip+lposs', 'clearclip+trident']


def model_of(method, feedback=None, vfm='toy', **options):
    config = compose('voc21', method, feedback, 'toy', vfm, data_root=MINI).model
    return MODELS.build(dict(config, **dict(dict(words=WORDS, window=96, stride=64, fit=None), **options)))


def images():
    """Two smooth images of different size; sides are no whole numbers of windows or patches."""
    generator = torch.Generator().manual_seed(0)
    coarse = [torch.randn(1, 3, *size, generator=generator) for size in ((5, 7), (6, 4))]
    sizes = ((132, 180), (150, 96))
    return [F.interpolate(image, size, mode='bilinear')[0] for image, size in zip(coarse, sizes)]


def pixels_of(model, sizes=((60, 80), (70, 50)), pictures=None, text=None):
    """Return the cosines (Q, height, width) of both images' pixels."""
    text = text or model.text
    merged = merged_images([Member(model, text)], pictures or images(), sizes)
    found = []
    for (pixels,), size in zip(merged, sizes):
        whole = torch.zeros(len(text.rows), *size)
        for place, tile in pixels.cosines.tiles(3000):
            whole[(slice(None), *place)] = tile
        found.append(whole)
    return found


def test_golden_numbers():
    visual, tensors = load_golden(os.path.join(ROOT, 'tests', 'golden', 'image_seed0.safetensors'))
    differences = whole_image_differences(visual, tensors)
    assert len(differences) == 8 and max(differences.values()) < EXACT, differences


@pytest.mark.parametrize('method', METHODS, ids=str)
def test_batches_of_windows_of_any_size_are_equal(method):
    """Also across images; what is computed of a whole image is dropped with it."""
    alone, together = (pixels_of(model_of(method, window_batch=size)) for size in (1, 5))
    for a, b in zip(alone, together):
        assert (a - b).abs().max() < 2e-5 * max(1, a.abs().max()) and a.std() > 1e-3
    single = pixels_of(model_of(method), sizes=((70, 50),), pictures=images()[1:])
    assert (single[0] - alone[1]).abs().max() < 2e-5 * max(
        1, single[0].abs().max()
    )  # an image's neighbours in the batch do not matter


def test_trident_has_one_mean_for_all_windows_of_an_image():
    model = model_of('trident', window_batch=2)
    means = []
    attention = type(model.method).attention

    def noted(self, block):
        means.extend(map(float, block.whole))
        return attention(self, block)

    model.method.__class__ = type('Noted', (type(model.method),), dict(attention=noted, path='noted'))
    pixels_of(model)
    counts = [len(windows(*image.shape[1:], 96, 64)) for image in images()]
    assert len(means) == sum(counts)
    groups = means[: counts[0]], means[counts[0] :]
    assert all(len(set(group)) == 1 for group in groups) and groups[0][0] != groups[1][0]
    whole = images()[0]
    crops = [whole[:, top:bottom, left:right] for (top, bottom), (left, right) in windows(*whole.shape[1:], 96, 64)]
    features = [model.features(crop[None])['proxy'] for crop in crops]
    assert groups[0][0] == pytest.approx(float(proxy_mean(features)), abs=1e-6)


@pytest.mark.parametrize('feedback', [None, 'fsa'])
def test_a_stage_is_what_its_parts_are(feedback):
    """ProxyCLIP's windows, with FSA or not; then the graph of the VFM's values; then the overlap-add."""
    staged, host = model_of('proxyclip+lposs', feedback), model_of('proxyclip', feedback)
    picture, size = images()[0], (60, 80)
    places = windows(*picture.shape[1:], 96, 64)
    cosines, features, centres = [], [], []
    for (top, bottom), (left, right) in places:
        crop = picture[None, :, top:bottom, left:right]
        [alone] = pixels_of_grid(host, crop)
        cosines.append(alone)
        values = staged.features(crop, ['graph'])['graph'][0]
        features.append(values.flatten(1).T)
        centres += [(top + 8 * i + 4, left + 8 * j + 4) for i in range(12) for j in range(12)]
    propagated = patch_graph(torch.cat(features), torch.tensor(centres).float()).propagate(torch.cat(cosines))
    overlap = OverlapAdd(Layout(tuple(picture.shape[1:]), size, 96, 64, (16, 16)))
    for place, part in zip(places, propagated.split(144)):
        overlap.add(Window(*place, part, (12, 12)))
    found = pixels_of(staged, (size,), [picture])[0]
    assert (overlap.strip()() - found).abs().max() < 1e-4
    assert (pixels_of(host, (size,), [picture])[0] - found).abs().max() > 1e-2  # the stage does something


def pixels_of_grid(model, crop):
    """Return a window's cosines (N, Q) on the VFM's grid, one tensor."""
    from fsa_seg.models.shared_pass import Crop, window_results

    rows, columns = (0, crop.shape[2]), (0, crop.shape[3])
    found = list(window_results([Member(model, model.text)], [Crop(0, crop[0], rows, columns)]))
    return [found[0][1].cosines]


@pytest.mark.parametrize(
    'method, message',
    [
        ('trident+lposs', 'Trident merges the windows of an image itself, so that the stage LPOSS cannot'),
        ('lposs+trident', 'LPOSS merges the windows of an image itself'),
        ('corrclip+trident', 'CorrCLIP has an `embed` of its own, and the stage Trident splices what comes before it'),
        ('proxyclip+sclip', 'SCLIP is no stage of another method; the stages are lposs, trident'),
        ('proxyclip+lpos', "unknown stage 'lpos' .did you mean 'lposs'"),
        (dict(type='proxyclip', stage=dict(type='LPOSS', pixel=True)), "unknown key 'pixel' in method lposs"),
        (dict(type='proxyclip', stage=dict(type='lposs', neighbours=0)), 'neighbours is 0; it has to be a whole'),
        (dict(type='proxyclip+lposs', stage='trident'), r'the method proxyclip\+lposs has the stage lposs already'),
        (dict(type='proxyclip', stage=dict(pixels=True)), 'has no type; name one of lposs, trident'),
        (dict(type='lposs', pixels=1), r'pixels is 1; it has to be True \(LPOSS\+\) or False'),
        (dict(type='trident', alpha=-1), 'alpha is -1; it has to be a number, at least 0'),
        (dict(type='trident', negative=2), 'negative is 2'),
        (dict(type='trident', halves=1), 'halves is 1'),
    ],
)
def test_refused(method, message):
    with pytest.raises(UserError, match=message):
        make_method(method)


def test_a_registered_segmentor_takes_a_stage():
    toy = compose('voc21', 'proxyclip', None, 'toy', 'toy', data_root=MINI).model.vfm.proxy
    options = dict(backbone=dict(model='local-dir:data/mini/models/toy_clip'), words=WORDS, window=96, stride=64)
    stage = dict(type='LPOSS', pixels=True)
    config = dict(type='ProxyCLIP', stage=stage, vfm=dict(proxy=toy, graph=toy), **options)
    model = MODELS.build(config)
    assert model.method.row_title == 'ProxyCLIP+LPOSS+' and model.method.stage.pixels
    with pytest.raises(UserError, match='needs a VFM for the role graph'):
        MODELS.build(dict(config, vfm=dict(proxy=toy)))
    assert stage_names() == ['lposs', 'trident']


def test_a_stage_is_another_cell_and_is_saved():
    cells = {}
    for method in (
        'proxyclip',
        'proxyclip+lposs',
        dict(type='proxyclip', stage=dict(type='lposs', pixels=True)),
        dict(type='proxyclip', stage=dict(type='lposs', neighbours=400)),
    ):
        config = compose('voc21', method, 'fsa', 'toy', 'toy', data_root=MINI)
        cells[str(method)] = cell_hash(fingerprint(config))
        again = from_json(json.loads(json.dumps(to_json(config))), 'a result')
        assert cell_hash(fingerprint(again)) == cells[str(method)] and again.model.get('stage') == config.model.get(
            'stage'
        )
    bare, stage, plus, spelt_out = cells.values()
    assert stage == spelt_out and len({bare, stage, plus}) == 3
    config = compose('voc21', 'proxyclip+lposs', 'fsa', 'toy', 'toy', data_root=MINI)
    assert (config.cell.method, config.cell.title) == ('proxyclip+lposs', 'ProxyCLIP+LPOSS')
    assert config.model.type == 'ProxyCLIP' and dict(config.model.stage) == dict(
        type='lposs', pixels=False, neighbours=400
    )


@pytest.mark.parametrize('place', ['stage', 'method', 'text'])
def test_a_saved_stage_runs_no_code(place, tmp_path):
    (tmp_path / 'evil.py').write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    evil = str(tmp_path / 'evil.py')
    config = json.loads(json.dumps(to_json(compose('voc21', 'proxyclip+lposs', None, 'toy', 'toy', data_root=MINI))))
    if place == 'method':
        del config['model']['stage']
        config['model']['method'] = dict(stage=evil)
    else:
        config['model']['stage'] = evil if place == 'text' else dict(type=evil)
    with pytest.raises(UserError, match="unknown stage in a result '.*evil.py'"):
        from_json(config, 'a result')
    assert not (tmp_path / 'ran').exists()


def test_a_hosts_vfm_and_lambda_stay_under_a_stage():
    staged = compose('voc21', 'proxyclip+trident', 'fsa', 'clip_vit-b16', data_root=MINI)
    assert staged.cell.vfm == 'proxy=dino_vit-b8,affinity=sam_vit-b16'
    options = dict(data_root=MINI, backbone='clip_vit-b16')
    mae = compose('voc21', 'proxyclip+lposs', 'fsa', vfm='proxy=dino_vit-b8,graph=mae_vit-b16', **options)
    host = compose('voc21', 'proxyclip+lposs', 'fsa', vfm='proxy=mae_vit-b16,graph=dino_vit-b16', **options)
    assert mae.model.feedback.get('lam', 3.0) == 3.0 and host.model.feedback.lam == 4.5


def test_numbers_of_sam_that_are_not_finite_are_found():
    """A VFM that sees the whole image gives NaN: the image's flag tells, and not that of another member."""
    trident = model_of('trident')
    run = trident.run

    def broken(role, pixels, kind=None):
        features = run(role, pixels, kind).clone()
        if role == 'affinity':
            features[:, 1:] = float('nan')  # the first channel is the number of heads
        return features

    trident.run = broken
    members = [Member(model, model.text) for model in (trident, model_of('clearclip'))]
    [found, _] = merged_images(members, images(), ((60, 80), (70, 50)))
    assert [part.finite.tolist() for part in found] == [[True, False, True], [True, True, True]]


def test_a_picture_from_a_file_has_its_regions(tmp_path, run_tool):
    maps = tmp_path / 'maps'
    names = region_maps(maps)
    picture = os.path.join(MINI, 'VOCdevkit', 'VOC2012', 'JPEGImages', f'{names[0]}.jpg')
    command = ['segment', picture, 'cat', 'grass', '--mini', '--method', 'corrclip', '--regions', str(maps)]
    status, printed = run_tool(*command, '--out', str(tmp_path / 'out.png'))
    assert status == 0 and (tmp_path / 'out.png').exists(), printed
    status, printed = run_tool(*command, '--attention', '20,20', '--out', str(tmp_path / 'attention.png'))
    assert status == 0 and (tmp_path / 'attention.png').exists(), printed


def test_all_that_changes_regions_is_another_cell():
    """A default spelt out and the folder of a cache are not; a dict of any other method's counts whole."""
    hashes = []
    for more in ({}, dict(seeds=64), dict(cache='kept'), dict(seeds=32), dict(side=448)):
        method = dict(type='corrclip', regions=dict(type='vfm', **more))
        hashes.append(cell_hash(fingerprint(compose('voc21', method, None, 'toy', 'toy', data_root=MINI))))
    assert len(set(hashes[:3])) == 1 and len(set(hashes)) == 3
    part = SimpleNamespace(settings=dict(own=dict(type='a', size=1)), regions=None)
    assert _method_settings(part, 'method')[0].value == dict(type='a', size=1)


def test_a_protocol_sets_a_stages_settings():
    config = compose('cityscapes', 'clearclip+trident', None, 'toy', 'toy', protocol='trident', data_root=MINI)
    stage = dict(config.model.stage)
    assert stage == dict(type='trident', alpha=3.0, negative=0.6, halves=True) and config.model.fit == 'stretch'
    given = dict(type='clearclip', stage=dict(type='trident', alpha=2.0))
    assert compose('cityscapes', given, None, 'toy', 'toy', protocol='trident', data_root=MINI).model.stage.alpha == 2.0


def test_clips_earlier_blocks_and_tokens_reach_a_splice():
    """Hosts with a readout of their own carry Trident as well: what they read out is spliced."""
    for host in ('scclip', 'gem', 'sclip'):
        found = [pixels_of(model_of(f'{host}+trident', feedback))[0] for feedback in (None, 'fsa')]
        assert found[0].isfinite().all() and (found[0] - found[1]).abs().max() > 1e-5


@MODELS.register_module()
class LocalVFM(nn.Module):
    """Each cell is the mean of its own pixels: the whole image's features are then its windows'."""

    multiple = 8

    def __init__(self, random_weights=None):
        super().__init__()

    def grid(self, height, width):
        return height // 8, width // 8

    def forward(self, images):
        return F.avg_pool2d(images, 8)


def test_a_vfm_that_sees_the_whole_image():
    """Where windows lie on the image's cells, features are copied; the VFM runs once an image."""
    pictures, sizes = [F.interpolate(images()[0][None], (160, 224), mode='bilinear')[0]], ((60, 80),)
    local = dict(type='LocalVFM')
    found = [
        pixels_of(_with_vfm(dict(local, **scope)), sizes, pictures)[0]
        for scope in ({}, dict(scope='image'), dict(scope='window'))
    ]
    assert torch.equal(found[0], found[2]) and (found[0] - found[1]).abs().max() < 1e-5
    model, runs = _with_vfm(dict(local, scope='image')), []
    model.vfms.proxy.register_forward_hook(lambda _, inputs, out: runs.append(tuple(inputs[0].shape)))
    pixels_of(model)
    assert runs == [(1, 3, 136, 184), (1, 3, 152, 96)]


def _with_vfm(vfm):
    config = compose('voc21', 'proxyclip', None, 'toy', 'toy', data_root=MINI).model
    return MODELS.build(dict(config, vfm=dict(proxy=vfm), words=WORDS, window=96, stride=64))


def test_features_between_cells_are_read_bilinearly():
    """A window that is shifted by part of a cell, against `grid_sample`; the image is padded on both sides."""
    model = _with_vfm(dict(type='LocalVFM', scope='image'))
    picture, seen = images()[0], []
    attention = type(model.method).attention

    def noted(self, block):
        seen.append((block.windows[0], block.features['proxy']))
        return attention(self, block)

    model.method.__class__ = type('Noted', (type(model.method),), dict(attention=noted, path='noted'))
    pixels_of(model, ((60, 80),), [picture])
    height, width = picture.shape[1:]
    padded = F.pad(model.to_rgb(F.pad(picture, (2, 2, 2, 2))), (0, 0))
    features = F.avg_pool2d(padded[None], 8)
    shifted = 0
    for place, found in seen:
        rows, columns = (torch.arange(12) * 8 + 4 + span[0] + 2 for span in (place.rows, place.columns))
        places = torch.stack(torch.meshgrid(rows / padded.shape[1], columns / padded.shape[2], indexing='ij')[::-1], -1)
        expected = F.grid_sample(features, 2 * places[None].float() - 1, 'bilinear', 'border', align_corners=False)
        assert (found - expected).abs().max() < 1e-5
        shifted += place.rows[0] % 8 != 0 or place.columns[0] % 8 != 0
    assert (height, width) == (132, 180) and shifted


def test_the_name_of_a_vfm_says_what_it_sees():
    config = compose('voc21', 'proxyclip', None, 'toy', 'toy@image', data_root=MINI)
    plain = compose('voc21', 'proxyclip', None, 'toy', 'toy', data_root=MINI)
    assert config.cell.vfm == 'toy@image' and config.model.vfm.proxy.scope == 'image'
    assert cell_hash(fingerprint(config)) != cell_hash(fingerprint(plain))
    said = compose('voc21', 'proxyclip', None, 'toy', 'toy', data_root=MINI)
    said.model.vfm.proxy.scope = 'window'
    assert cell_hash(fingerprint(said)) == cell_hash(fingerprint(plain))
    with pytest.raises(UserError, match='the role affinity of Trident sees what the method shows it'):
        MODELS.build(compose('voc21', 'trident', None, 'toy', 'affinity=toy@image,proxy=toy', data_root=MINI).model)
    with pytest.raises(UserError, match="scope is 'room'"):
        compose('voc21', 'proxyclip', None, 'toy', 'toy', data_root=MINI) and _compose_scope('room')


def _compose_scope(scope):
    from fsa_seg.config.compose import merge_options

    config = compose('voc21', 'proxyclip', None, 'toy', 'toy', data_root=MINI)
    merge_options(config, {'model.vfm.proxy.scope': scope})


def test_a_vfm_without_the_kind():
    config = compose('voc21', 'lposs', None, 'toy', 'toy', data_root=MINI).model
    with pytest.raises(UserError, match="the VFM LocalVFM has no features of the kind 'values', but 'tokens'"):
        MODELS.build(dict(config, vfm=dict(graph=dict(type='LocalVFM'))))
    kept = MODELS.build(dict(config, vfm=dict(graph=dict(type='LocalVFM', features='tokens')), words=WORDS))
    assert kept.kind('graph') == 'tokens'  # the config's kind comes before the method's


@pytest.mark.parametrize(
    'size, expected',
    [
        ((448, 672), (448, 672)),
        ((448, 597), (464, 608)),
        ((597, 448), (608, 464)),
        ((320, 500), (336, 512)),
        ((100, 90), (336, 336)),
    ],
)
def test_stretching(size, expected):
    assert stretched_size(size, (16, 16), 336) == expected


def test_images_are_brought_to_whole_patches():
    """'stretch' keeps the whole image; 'pad' adds black, and what is padded is not in the result."""
    picture = images()[0]
    stretch, pad = (model_of('clearclip', fit=fit) for fit in ('stretch', 'pad'))
    assert stretch.fitted(picture).shape == (3, 144, 192)
    fitted = pad.fitted(picture)
    assert fitted.shape == (3, 144, 192) and torch.equal(fitted[:, :132, :180], picture)
    assert pad.to_rgb(fitted)[:, 132:].abs().max() < 1e-6 and pad.to_rgb(fitted)[:, :, 180:].abs().max() < 1e-6
    size = (66, 90)
    found = pixels_of(pad, (size,), [picture])[0]
    whole = pixels_of(model_of('clearclip'), ((144, 192),), [fitted])[0]
    expected = F.interpolate(whole[None, :, :132, :180], size, mode='bilinear', align_corners=False)[0]
    assert (found - expected).abs().max() < 1e-5


def test_pixels_of_a_map_are_resized():
    cosines = torch.randn(5, 20, 30)
    for size in ((20, 30), (33, 41), (7, 50), (1, 1)):
        tiles = [torch.zeros(5, *size)]
        for place, tile in PixelMap(cosines, size).tiles(700):
            tiles[0][(slice(None), *place)] = tile
        expected = F.interpolate(cosines[None], size, mode='bilinear', align_corners=False)[0]
        torch.testing.assert_close(tiles[0], expected, atol=1e-5, rtol=0)


def test_an_image_of_fewer_patches_than_neighbours():
    model = model_of('lposs')
    found = pixels_of(model, ((40, 30),), [torch.randn(3, 24, 20)])
    assert found[0].isfinite().all()


def test_lab_is_of_the_resized_image_without_padding():
    """LPOSS+ under its protocol, whose images are padded."""
    model = model_of(dict(type='lposs', pixels=True), fit='pad')
    found = pixels_of(model)
    assert (
        all(part.isfinite().all() for part in found) and (found[0] - pixels_of(model_of('lposs', fit='pad'))[0]).std()
    )


def test_sam_sees_the_original_file(tmp_path):
    """The longer side at SAM's, padded with the colour that SAM normalises to 0; halves go through it apart."""
    for halves, expected in ((False, [((64, 44), 0.0)]), (True, [((64, 24), 0.0), ((64, 24), 0.5)])):
        model, seen = model_of(dict(type='trident', halves=halves)), []
        vfm = model.vfms.affinity
        vfm.input_side = 64
        run = model.run

        def noted(role, pixels, kind=None, run=run, seen=seen):
            if role == 'affinity':
                seen.append(pixels)
            return run(role, pixels, kind)

        model.run = noted
        ramp = np.tile(np.linspace(0, 255, 200).astype(np.uint8)[None, :, None], (300, 1, 3))
        Image.fromarray(ramp).save(tmp_path / 'a.png')
        sample = SegDataSample(metainfo=dict(img_path=str(tmp_path / 'a.png'), ori_shape=(300, 200)))
        resized = torch.from_numpy(ramp[::2, ::2].copy()).permute(2, 0, 1)
        data = dict(inputs=[resized], data_samples=[sample])
        out = model.test_step(data)[0]
        assert isinstance(out.pred_sem_seg, PixelData) and out.pred_sem_seg.shape == (300, 200)
        assert len(seen) == len(expected)
        for pixels, ((height, width), first) in zip(seen, expected):
            assert pixels.shape == (1, 3, 64, 64)
            shown = pixels[0, 0, :height, :width]
            assert float(shown[32, 0]) == pytest.approx(first, abs=0.03)
            assert (pixels[0, :, :, width:] - torch.tensor(vfm.mean)[:, None, None]).abs().max() < 1e-6


def region_maps(folder, change=None):
    """Write a region map of four quarters for each image of the mini split of VOC21."""
    folder.mkdir()
    source = os.path.join(MINI, 'VOCdevkit', 'VOC2012')
    with open(os.path.join(source, 'ImageSets', 'Segmentation', 'val.txt')) as f:
        names = f.read().split()
    for name in names:
        with Image.open(os.path.join(source, 'JPEGImages', f'{name}.jpg')) as image:
            width, height = image.size
        rows, columns = (np.arange(side) * 2 // side for side in (height, width))
        Image.fromarray((1 + 2 * rows[:, None] + columns).astype(np.uint8)).save(folder / f'{name}.png')
    return names


def test_region_maps_from_files(tmp_path, run_tool):
    maps = tmp_path / 'maps'
    names = region_maps(maps)
    command = ['test', 'voc21', '--mini', '--method', 'corrclip', '--regions', str(maps), '--limit', 2]
    status, printed = run_tool(*command)
    assert status == 0 and 'CorrCLIP regions=files + FSA on voc21 (corrclip)' in printed, printed
    for name in names:  # other maps are another cell
        with Image.open(maps / f'{name}.png') as image:
            changed = np.array(image)
        changed[:3] = 9
        Image.fromarray(changed).save(maps / f'{name}.png')
    config = compose(
        'voc21', dict(type='corrclip', regions=dict(type='files', folder=str(maps))), None, 'toy', 'toy', data_root=MINI
    )
    before = cell_hash(prepare(config).fingerprint)
    Image.fromarray(np.ones((5, 5), np.uint8)).save(maps / f'{names[3]}.png')
    with pytest.raises(UserError, match=f'{names[3]}.png has 5×5 pixels, its image'):
        prepare(config)
    os.remove(maps / f'{names[3]}.png')
    with pytest.raises(UserError, match=f'1 of 10 images have no region map; the first is .*{names[3]}'):
        prepare(config)
    shutil.rmtree(maps)
    region_maps(maps)
    assert cell_hash(prepare(config).fingerprint) != before


def test_memory_that_a_stage_would_exceed(monkeypatch, tmp_path):
    """It is said before the run, by the largest image, with the setting that lowers it."""
    method = dict(type='lposs', pixels=True)
    config = compose('voc21', method, None, 'toy', 'toy', data_root=MINI, runtime=dict(work_dir=str(tmp_path)))
    monkeypatch.setattr(passes, 'free_memory', lambda: 10**6)
    with pytest.raises(UserError, match=r'LPOSS takes about .* GB for the largest image, .* by `pixels=False`'):
        run_cells([config], lambda groups: groups)
    assert not (tmp_path / 'results').exists()


@pytest.mark.parametrize('method', ['lposs', 'trident', 'corrclip'])
def test_an_interrupted_run_goes_on_to_equal_counts(method, small, tmp_path, monkeypatch):
    """The second image fails first; the run after counts the same as one without fault."""

    def cell(folder):
        runtime = dict(work_dir=str(tmp_path / folder), workers=0)
        config = compose('voc21', method, 'fsa', 'toy', 'toy', limit=2, data_root=str(small), runtime=runtime)
        config.model.update(window=64, stride=48)
        next(step for step in config.test_dataloader.dataset.pipeline if step.type == 'Resize').scale = (2048, 96)
        return prepare(config)

    labels = passes.MODELS.get('TrainingFreeSegmentor').labels
    calls = []

    def failing(self, *arguments, **others):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return labels(self, *arguments, **others)

    with monkeypatch.context() as patch:
        patch.setattr(passes.MODELS.get('TrainingFreeSegmentor'), 'labels', failing)
        with pytest.raises(KeyboardInterrupt):
            run_pass([cell('w')])
    [result] = run_pass([cell('w')])
    assert result['images_resumed'] == 1
    [whole] = run_pass([cell('undisturbed')])
    assert whole['confusion'] == result['confusion'] and whole['images'] == result['images']
