import pytest
import torch
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from fsa_seg.config.compose import compose, merge_options
from fsa_seg.errors import UserError
from fsa_seg.methods import method_names
from fsa_seg.models import segmentor
from fsa_seg.models.clip import trunk
from fsa_seg.models.shared_pass import Crop, Member, window_results
from fsa_seg.models.text import TextEncoder
from fsa_seg.ops import reference
from fsa_seg.ops.labels import class_scores, label_map
from fsa_seg.ops.pamr import pamr

WORDS = [['sky', 'wall'], ['cat'], ['grass'], ['road']]


def build(method='sclip', fsa=None, **options):
    config = compose('voc21', method, fsa, 'toy', 'toy').model
    return MODELS.build(dict(config, words=WORDS, **options))


def sample(height, width):
    return SegDataSample(metainfo=dict(ori_shape=(height, width)))


@pytest.mark.parametrize('feedback', [None, 'fsa'])
@pytest.mark.parametrize('method', method_names(users=False))
def test_images_of_different_size_in_one_batch(method, feedback):
    """Each gets labels at its own original size, the same as alone."""
    model = build(method, feedback, window=96, stride=64, keep_scores=True)
    torch.manual_seed(0)
    images = [torch.randint(256, (3, h, w), dtype=torch.uint8) for h, w in ((112, 160), (96, 90))]
    sizes = [(50, 71), (96, 33)]
    both = model.test_step(dict(inputs=images, data_samples=[sample(*size) for size in sizes]))
    for image, size, out in zip(images, sizes, both):
        assert out.pred_sem_seg.shape == size
        assert out.seg_logits.shape == size and len(out.seg_logits.data) == len(WORDS)
        alone = model.test_step(dict(inputs=[image], data_samples=[sample(*size)]))[0]
        assert torch.equal(out.pred_sem_seg.data, alone.pred_sem_seg.data)
        assert out.pred_sem_seg.data.max() < len(WORDS)


@pytest.mark.parametrize('options', [dict(), dict(area_thd=0.1, prob_thd=0.3)])
def test_post_processing_tile_by_tile_gives_the_same_labels(monkeypatch, options):
    """And holds no scores of the whole image."""
    torch.manual_seed(0)
    data = dict(inputs=[torch.randint(256, (3, 112, 160), dtype=torch.uint8)], data_samples=[sample(200, 171)])
    model = build('sclip', 'fsa', window=96, stride=64, **options)
    whole = model.test_step(data)[0].pred_sem_seg.data
    monkeypatch.setattr(segmentor, 'TILE_SCORES', dict(cpu=5000, cuda=5000))
    shapes, own = [], segmentor.class_scores
    monkeypatch.setattr(
        segmentor, 'class_scores', lambda cosines, *rest: shapes.append(cosines.shape) or own(cosines, *rest)
    )
    assert torch.equal(model.test_step(data)[0].pred_sem_seg.data, whole)
    assert len(whole.unique()) > 1
    assert all(shape.numel() <= 5000 for shape in shapes) and len({shape[1:] for shape in shapes}) > 2
    assert sum(shape.numel() for shape in shapes) == 5 * 200 * 171 * (1 if model.area_thd is None else 2)


def test_scores_are_those_that_the_labels_are_of(monkeypatch):
    torch.manual_seed(0)
    image = torch.randint(256, (3, 112, 160), dtype=torch.uint8)
    monkeypatch.setattr(segmentor, 'TILE_SCORES', dict(cpu=5000, cuda=5000))
    scored, bare = (
        build('sclip', 'fsa', window=96, stride=64, area_thd=None, prob_thd=0.0, keep_scores=keep).test_step(
            dict(inputs=[image], data_samples=[sample(200, 171)])
        )[0]
        for keep in (True, False)
    )
    assert torch.equal(scored.seg_logits.data.argmax(0), scored.pred_sem_seg.data[0])
    assert torch.equal(bare.pred_sem_seg.data, scored.pred_sem_seg.data) and 'seg_logits' not in bare


def test_scores_on_request_alone():
    out = build(window=96, stride=64).test_step(
        dict(inputs=[torch.zeros(3, 96, 96, dtype=torch.uint8)], data_samples=[sample(96, 96)])
    )[0]
    assert 'seg_logits' not in out and isinstance(out.pred_sem_seg, PixelData)


def test_feedback_off_is_the_baseline_bit_for_bit():
    image = torch.randn(3, 96, 128)
    bare, wrapped = build(window=96, stride=64), build(fsa='fsa', window=96, stride=64)
    cosines = bare.pixel_cosines(image)
    assert not torch.equal(cosines, wrapped.pixel_cosines(image))
    wrapped.feedback = None
    assert torch.equal(cosines, wrapped.pixel_cosines(image))


def test_a_spelled_out_method_equals_the_named_one():
    image = torch.randn(3, 96, 96)
    spelled = MODELS.build(
        dict(
            type='TrainingFreeSegmentor',
            backbone=dict(model='local-dir:data/mini/models/toy_clip'),
            words=WORDS,
            method=dict(attention='qq'),
            window=96,
            stride=96,
        )
    )
    assert torch.equal(spelled.pixel_cosines(image), build('clearclip', window=96, stride=96).pixel_cosines(image))


def test_the_preprocessor_makes_rgb_with_the_backbones_mean_and_std():
    model = build()
    image = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].expand(3, 4, 4)  # BGR
    out = model.data_preprocessor(dict(inputs=[image]))['inputs'][0]
    mean, std = (torch.tensor(model.visual.preprocess_cfg[key]) for key in ('mean', 'std'))
    torch.testing.assert_close(out[:, 0, 0], (torch.tensor([30.0, 20.0, 10.0]) / 255 - mean) / std)


def test_the_vfm_gets_images_in_0_to_1():
    model = build('proxyclip')
    seen = []
    model.vfms.proxy.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.randint(256, (3, 96, 96), dtype=torch.uint8)
    model.test_step(dict(inputs=[image], data_samples=[sample(96, 96)]))
    torch.testing.assert_close(seen[0][0], image.flip(0).float() / 255, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
def test_half_precision(precision):
    """Labels of half precision agree with float32's on almost all pixels; cosines stay float32."""
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.randn(1, 3, 6, 6), (96, 96), mode='bilinear')[0]
    full, half = (
        build('proxyclip', 'fsa', precision=p, window=96, stride=96).pixel_cosines(image) for p in ('fp32', precision)
    )
    assert half.dtype == torch.float32
    towers = build('proxyclip', precision=precision)
    assert {p.dtype for p in (*towers.visual.parameters(), *towers.vfms.parameters())} == {
        segmentor.PRECISIONS[precision]
    }
    assert (full.argmax(0) == half.argmax(0)).float().mean() > 0.9
    assert not torch.equal(full, half)


def test_training_is_refused():
    model = build()
    with pytest.raises(RuntimeError, match='training-free'):
        model.train()
    with pytest.raises(RuntimeError, match='training-free'):
        model.loss([torch.zeros(3, 96, 96)], [])
    assert not model.training and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(window=-1), 'window is -1; it has to be a whole number'),
        (dict(stride=500), 'window is 224 and stride 500'),
        (dict(stride=1.5), 'stride is 1.5'),
        (dict(logit_scale=0), 'logit_scale is 0'),
        (dict(precision='fp8'), 'precision'),
        (dict(feedback=dict(type='FSA', p=2)), 'p is 2'),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


def test_proxy_attention_without_a_vfm():
    with pytest.raises(UserError, match='needs a VFM'):
        MODELS.build(dict(type='ProxyCLIP', backbone=dict(model='local-dir:data/mini/models/toy_clip'), words=WORDS))


@MODELS.register_module()
class NoFeatures(torch.nn.Module):
    """A VFM that has no features for small windows."""

    multiple = (1, 1)

    def grid(self, height, width):
        return height // 100, width // 100


@pytest.mark.parametrize(
    'window, message',
    [
        (96, 'the VFM has no features for a window of 96 pixels: its grid would be 0×0'),
        (15, 'window is 15 pixels, smaller than a patch of the backbone, 16×16'),
    ],
)
def test_windows_that_are_too_small(window, message):
    with pytest.raises(UserError, match=message):
        build('proxyclip', vfm=dict(type='NoFeatures'), window=window, stride=8)


@pytest.mark.parametrize(
    'vfm, message',
    [
        (dict(type='TimmViT', model='vit_base_patch8_224.dino', checkpoint='gone.pth'), 'gone.pth.* does not exist'),
        (dict(type='TimmViT', model='vit_base_patch8_224.dinno'), 'cannot be built'),
        (dict(type='TimmViT', patch=8), 'cannot be built: TypeError'),
        (dict(type='PAMR'), "the VFM 'PAMR' of class PAMR has no `multiple`"),
        (dict(type='NoFeatures'), 'has no features for a window of 96'),
    ],
)
@pytest.mark.parametrize('members', [0, 2])
def test_a_vfm_is_checked_before_words_are_embedded(vfm, message, members, monkeypatch):
    """In a segmentor, and in a pass whose first member needs no VFM."""
    monkeypatch.setattr(TextEncoder, 'encode', lambda *_: pytest.fail('words were embedded'))
    config = dict(compose('voc21', 'proxyclip', None, 'toy', 'toy').model, window=96, stride=64, vfm=vfm)
    bare = dict(compose('voc21', 'sclip', None, 'toy').model, window=96, stride=64)
    with pytest.raises(UserError, match=message):
        MODELS.build(dict(type='SharedPass', members=[bare, config]) if members else config)


@pytest.mark.parametrize('method', method_names(users=False))
def test_the_grid_is_known_before_a_window_runs(method):
    model = build(method, window=96, stride=64)
    sizes = [(96, 90), (86, 96), (128, 60)] if model.method.least_patches > 1 else [(96, 64), (90, 50), (16, 7)]
    for height, width in sizes:
        crop = Crop(0, torch.zeros(3, height, width), (0, height), (0, width))
        [(_, window, _, _)] = window_results([Member(model, model.text)], [crop])
        assert window.grid == model.grid(height, width)


def test_naclips_protocol_step_by_step():
    """A whole image, PAMR on cosines at original size, threshold: by the dense reference and plain steps."""
    config = compose('voc21', 'naclip', None, 'toy', 'toy').model
    model = MODELS.build(config)
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.randn(1, 3, 5, 6), (107, 150), mode='bilinear')[0]
    out = model.predict([image], [sample(60, 84)])[0]
    tokens, grid = trunk(model.visual, image[None, :, :96, :144])
    cosines = reference.logits(model.visual, tokens, grid, model.text.rows, **reference.METHODS['naclip'])
    pixels = cosines.transpose(1, 2).unflatten(2, grid)
    for size in ((107, 150), (60, 84)):
        pixels = torch.nn.functional.interpolate(pixels, size, mode='bilinear')
    small = torch.nn.functional.interpolate(image[None], (60, 84), mode='bilinear')[0]
    refined = pamr(pixels[0].clone(), small)
    scores = class_scores(refined, model.text.words_per_class, 40)
    expected = label_map(scores, 0.1)
    assert (out.pred_sem_seg.data[0] == expected).float().mean() > 0.999
    unrefined = label_map(class_scores(pixels[0], model.text.words_per_class, 40), 0.1)
    assert (unrefined != expected).float().mean() > 0.005  # PAMR matters here
    with pytest.raises(UserError, match='window is 0, the whole image, which the method proxyclip cannot take'):
        build('proxyclip', window=0)


@pytest.mark.parametrize(
    'method, refinement, settings',
    [
        ('sclip', 'PAMR', ['dilations=[8, 16]']),
        ('proxyclip', 'PAMR', ['dilations=[8, 16]']),
        ('proxyclip', 'TLP', ['product=diagonal', 'side=80']),
    ],
)
def test_any_method_takes_a_refinement(method, refinement, settings):
    """By an option, which marks the cell; scores that are kept are those of the labels."""
    config = compose('voc21', method, 'fsa', 'toy', 'toy')
    merge_options(config, {'model.refinement': refinement, 'model.refinement.steps': 3})
    changed = [*(f'model.refinement.{setting}' for setting in [*settings, 'steps=3']), f'model.refinement={refinement}']
    assert sorted(config.cell.changed) == sorted(changed)
    torch.manual_seed(0)
    image = torch.randint(256, (3, 100, 140), dtype=torch.uint8)
    refined, bare = (
        MODELS.build(dict(config.model, refinement=refinement, prob_thd=0.0, area_thd=None, keep_scores=True))
        for refinement in (config.model.refinement, None)
    )
    outs = [model.test_step(dict(inputs=[image], data_samples=[sample(90, 120)]))[0] for model in (refined, bare)]
    assert not torch.equal(outs[0].pred_sem_seg.data, outs[1].pred_sem_seg.data)
    for out in outs:
        assert torch.equal(out.seg_logits.data.argmax(0), out.pred_sem_seg.data[0])
    merge_options(config, {'model.refinement': None})
    assert config.model.refinement is None
