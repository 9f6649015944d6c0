import builtins

import pytest
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS

from fsa_seg.errors import UserError
from fsa_seg.models.sam_refinement import SAMRefinement

TINY = dict(
    vision_config=dict(
        hidden_size=16,
        output_channels=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        window_size=3,
        global_attn_indexes=[1],
        mlp_dim=32,
        num_pos_feats=8,
    ),
    prompt_encoder_config=dict(hidden_size=16, image_size=64, patch_size=8, mask_input_channels=8),
    mask_decoder_config=dict(
        hidden_size=16, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16
    ),
)


@pytest.fixture(autouse=True)
def needs_transformers():
    pytest.importorskip('transformers', reason="SAMRefinement needs transformers: pip install 'fsa-seg[masks]'")


def tiny(**settings):
    return MODELS.build(
        dict(dict(type='SAMRefinement', least_area=4, random_weights=0, model_args=TINY), **settings)
    ).load()


def scene(height=48, width=64, classes=3, seed=0):
    """Return labels of blocks, a random image, and scores whose best class is the label."""
    torch.manual_seed(seed)
    coarse = torch.randn(1, classes, 3, 4)
    scores = (4 * F.interpolate(coarse, (height, width), mode='bilinear')[0]).softmax(0)
    return scores.argmax(0), torch.rand(3, height, width), scores


class Answers:
    """A stand-in for the prompt encoder and the mask decoder: the same answer for all prompts of a class in turn.

    Attributes:
        prompts: what each call got.
    """

    def __init__(self, refinement, monkeypatch, answer):
        self.prompts, self.answer = [], answer
        monkeypatch.setattr(refinement, '_segment', self.segment)

    def segment(self, encoded, boxes, points, mask):
        self.prompts.append((boxes, points, mask))
        logits, ious = self.answer(len(self.prompts) - 1, boxes, points)
        return logits.expand(len(boxes), 32, 32), torch.as_tensor(ious).expand(len(boxes))


def test_shape_type_and_determinism():
    """Sides that are odd, and a portrait; the inputs stay as they are."""
    for size in ((48, 64), (47, 33), (65, 40), (1, 9)):
        labels, image, scores = scene(*size)
        before = [tensor.clone() for tensor in (labels, image, scores)]
        refinement = tiny(iou_thresh=0)
        refined = refinement.refine(labels, image, None, scores)
        assert refined.shape == labels.shape and refined.dtype == torch.int64
        assert torch.equal(refined, tiny(iou_thresh=0).refine(labels, image, None, scores))
        assert all(map(torch.equal, before, (labels, image, scores)))
        assert set(refined.unique().tolist()) <= set(labels.unique().tolist())


def test_the_segmentor_reads_what_the_refinement_needs():
    refinement = tiny()
    assert (refinement.refines, refinement.needs_scores, refinement.sees_original) == ('labels', True, True)
    assert not refinement.training and not any(p.requires_grad for p in refinement.parameters())


def test_random_weights_are_those_of_their_seed():
    states = [tiny(random_weights=seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


def square_scene():
    """Return two classes on 64×64 pixels: a blurred square's labels and scores, and the true square at 32×32."""
    true = torch.zeros(32, 32, dtype=torch.bool)
    true[8:24, 8:24] = True
    labels = torch.zeros(64, 64, dtype=torch.int64)
    labels[20:60, 20:52] = 1  # too low
    one = torch.where(labels == 1, 0.7, 0.4)
    return labels, torch.rand(3, 64, 64), torch.stack([1 - one, one]), true


def test_a_perfect_mask_becomes_the_label(monkeypatch):
    """The square's class gets the mask of the square, background the mask of the rest, both of an IoU of 0.9."""
    labels, image, scores, true = square_scene()
    refinement = tiny()

    def answer(call, boxes, points):
        return torch.where(true if call else ~true, 20.0, -20.0), 0.9

    answers = Answers(refinement, monkeypatch, answer)
    refined = refinement.refine(labels, image, None, scores)
    expected = true.repeat_interleave(2, 0).repeat_interleave(2, 1).long()
    inner = F.max_pool2d(expected[None].float(), 7, 1, 3) == -F.max_pool2d(-expected[None].float(), 7, 1, 3)
    assert torch.equal(refined[inner[0]], expected[inner[0]])  # but for the resize at the edge
    assert (refined != expected).float().mean() < 0.05 < (labels != expected).float().mean()
    assert len(answers.prompts) == 2


def test_prompts(monkeypatch):
    """Box, point and mask of the square's class in SAM's input of 64×64, of an image of 128×256 pixels."""
    labels = torch.zeros(128, 256, dtype=torch.int64)
    labels[40:80, 100:160] = 1
    one = torch.where(labels == 1, 0.7, 0.1)
    one[60:62, 120:122] = 0.8
    one[:, :60] = 0.15
    refinement = tiny(least_area=225)
    answers = Answers(refinement, monkeypatch, lambda *_: (torch.tensor(-1.0), 0.0))
    refinement.refine(labels, torch.rand(3, 128, 256), None, torch.stack([1 - one, one]))
    (boxes, points, mask) = answers.prompts[1]
    assert torch.equal(boxes, torch.tensor([[50.0, 20, 79, 39]]) * 0.5)  # half size, 64×128, to 32×64
    assert torch.equal(points, torch.tensor([[60.0, 30]]) * 0.5)
    assert mask.shape == (1, 1, 32, 32)
    resized = F.interpolate(one[None, None], (64, 128), mode='bilinear')
    resized = F.interpolate(resized, (16, 32), mode='bilinear')[0, 0]
    expected = torch.zeros(32, 32)
    expected[:16] = 0.005 * resized * (resized > 0.2)
    torch.testing.assert_close(mask[0, 0], expected)
    assert (expected[:16] == 0).any() and (expected > 0).any()


def test_failed_regions_keep_their_labels(monkeypatch):
    """An IoU of the threshold itself is not enough; with more, the square's mask of all pixels is the label."""
    labels, image, scores, _ = square_scene()
    for iou, expected in ((0.8, labels), (0.81, torch.ones_like(labels))):
        refinement = tiny()
        Answers(refinement, monkeypatch, lambda call, *_, iou=iou: (torch.tensor(20.0 if call else -20.0), iou))
        assert torch.equal(refinement.refine(labels, image, None, scores), expected)


def test_of_equal_new_scores_the_lower_class_counts(monkeypatch):
    labels, image, scores, _ = square_scene()
    refinement = tiny()
    Answers(refinement, monkeypatch, lambda *_: (torch.tensor(20.0), 0.9))
    assert (refinement.refine(labels, image, None, torch.full_like(scores, 0.5)) == 0).all()


def test_masks_end_where_the_image_ends():
    """An image of 128×256 pixels fills the upper half of SAM's 64×64; what the mask says below is left out."""
    logits = torch.randn(2, 32, 32)
    logits[:, 20:] = 99.0
    found = tiny()._to_pixels(logits, (32, 64), torch.Size((64, 128)))
    whole = F.interpolate(logits[None], (64, 64), mode='bilinear')
    torch.testing.assert_close(found, F.interpolate(whole[:, :, :32], (64, 128), mode='bilinear')[0])
    assert found.max() < 99


def test_in_a_failed_region_coarse_scores_compete(monkeypatch):
    """Background's mask, which is kept, covers all: it wins where its score exceeds the failed class's."""
    labels, image, scores, _ = square_scene()
    scores[:, 40:60, 20:52] = torch.tensor([0.75, 0.7])[:, None, None]  # a label need not be the best score
    refinement = tiny()
    Answers(refinement, monkeypatch, lambda call, *_: (torch.tensor(20.0), 0.1 if call else 0.9))
    refined = refinement.refine(labels, image, None, scores)
    assert (refined[22:38, 22:50] == 1).all() and (refined[42:, :] == 0).all() and (refined[:18] == 0).all()


def test_pixels_without_a_score_keep_their_label_at_full_size(monkeypatch):
    """Small regions, scores below the threshold, and pixels outside of kept masks; thin lines that halving loses."""
    labels = torch.zeros(64, 64, dtype=torch.int64)
    labels[:, 33] = 2  # an odd column, which the halved labels lack
    labels[4:8, 4:8] = 1  # a region of 2×2 pixels at half size
    labels[40:60, 40:60] = 3
    scores = torch.full((4, 64, 64), 0.1)
    scores[0], scores[1, 4:8, 4:8], scores[3, 40:60, 40:60] = 0.5, 0.9, 0.19
    refinement = tiny(least_area=5)
    mask = torch.full((32, 32), -9.0)
    mask[20:24, 4:8] = 9.0
    answers = Answers(refinement, monkeypatch, lambda *_: (mask, 0.9))
    assert torch.equal(refinement.refine(labels, torch.rand(3, 64, 64), None, scores), labels)
    assert len(answers.prompts) == 1  # background's alone
    scores[0] = 0.1
    answers = Answers(refinement, monkeypatch, lambda *_: pytest.fail('there is nothing to prompt with'))
    assert torch.equal(refinement.refine(labels, torch.rand(3, 64, 64), None, scores), labels)


def test_regions_touch_at_corners_and_have_an_area():
    """8-connected; a region of `least_area` pixels is large enough; the best score counts within the region alone."""
    pixels = torch.zeros(12, 12, dtype=torch.bool)
    pixels[0:2, 0:2] = pixels[2:4, 2:4] = True  # touch at a corner: 8 pixels
    pixels[6:8, 6:9] = True  # 6 pixels
    pixels[10, 0:5] = True  # 5 pixels
    score = torch.rand(12, 12)
    score[0, 3] = 2.0  # in the first box, outside of the region
    found = tiny(least_area=6)._regions(pixels, score)
    assert found.boxes.tolist() == [[0, 0, 3, 3], [6, 6, 8, 7]]
    assert torch.equal(found.places > 0, pixels & (torch.arange(12)[:, None] < 9)) and found.places.max() == 2
    for i, (x, y) in enumerate(found.points.long().tolist()):
        assert score[y, x] == score[found.places == i + 1].max()


def test_many_prompts_go_in_parts(monkeypatch):
    """20 regions of one class in two parts give what each alone gives."""
    from fsa_seg.models import sam_refinement

    labels = torch.zeros(64, 80, dtype=torch.int64)
    for i in range(20):
        y, x = divmod(i, 5)
        labels[16 * y : 16 * y + 8, 16 * x : 16 * x + 8] = 1
    one = torch.where(labels == 1, 0.8, 0.1)
    arguments = labels, torch.rand(3, 64, 80), None, torch.stack([0.9 - one, one])
    results = []
    for prompts in (1, 16, 100):
        monkeypatch.setattr(sam_refinement, 'PROMPTS', prompts)
        refinement = tiny()
        segment, calls = refinement._segment, []

        def jittered(encoded, boxes, points, mask, segment=segment, calls=calls):
            calls.append(len(boxes))
            logits, _ = segment(encoded, boxes, points, mask)
            return logits - logits.mean((1, 2), keepdim=True), (boxes.sum(1) % 3 != 0) * 0.9

        monkeypatch.setattr(refinement, '_segment', jittered)
        results.append(refinement.refine(*arguments))
        assert max(calls) == min(prompts, 20) and sum(calls) == 21
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_the_decoder_is_transformers_own():
    """Two prompts at once give what `SamModel` gives for each from pixels, box, point and mask, as single masks."""
    refinement = tiny()
    for parameter in refinement.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    image, boxes = torch.rand(3, 64, 64), torch.tensor([[4.0, 8, 30, 40], [20, 2, 60, 33]])
    points, mask = torch.tensor([[10.0, 20], [40, 12]]), torch.rand(1, 1, 32, 32)
    encoded, size = refinement._encode(image)
    assert size == (64, 64)
    logits, ious = refinement._segment(encoded, boxes, points, mask)
    assert logits.shape == (2, 32, 32) and ious.shape == (2,)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((image - mean[:, None, None]) / std[:, None, None])[None]
    for i in range(2):
        output = refinement.sam(
            pixel_values=pixels,
            input_boxes=boxes[None, i : i + 1],
            input_points=points[None, i : i + 1, None],
            input_masks=mask,
            multimask_output=False,
        )
        torch.testing.assert_close(logits[i], output.pred_masks[0, 0, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ious[i], output.iou_scores[0, 0, 0], atol=1e-5, rtol=1e-4)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_sams_input_keeps_the_proportions(monkeypatch):
    """The longer side becomes SAM's; the padding, below or at the right, is 0 after the normalisation."""
    refinement, seen = tiny(), []
    monkeypatch.setattr(refinement.sam, 'get_image_embeddings', seen.append)
    for shape, expected in (((50, 100), (32, 64)), ((100, 30), (64, 19)), ((32, 20), (64, 40))):
        _, size = refinement._encode(torch.rand(3, *shape))
        assert size == expected and seen[-1].shape == (1, 3, 64, 64)
        padding = torch.ones(64, 64, dtype=torch.bool)
        padding[: size[0], : size[1]] = False
        assert (seen[-1][..., padding] == 0).all() and (seen[-1][..., ~padding] != 0).all()


def test_weights_from_a_folder(tmp_path):
    saved = tiny(random_weights=3)
    saved.sam.save_pretrained(tmp_path / 'sam')
    loaded = SAMRefinement(str(tmp_path / 'sam'), least_area=4).load()
    state = saved.sam.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.sam.state_dict().items())
    labels, image, scores = scene()
    assert torch.equal(loaded.refine(labels, image, None, scores), saved.refine(labels, image, None, scores))


def test_weights_that_do_not_fit(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny().sam.save_pretrained(tmp_path)
    path = tmp_path / 'model.safetensors'
    state = load_file(path)
    del state['mask_decoder.iou_token.weight']
    save_file(state, path, dict(format='pt'))
    with pytest.raises(UserError, match='do not fit a SAM: 1 are missing .*such as mask_decoder.iou_token.weight'):
        SAMRefinement(str(tmp_path)).load()


def test_weights_that_are_not_there(tmp_path, monkeypatch):
    """The cache comes before the network."""
    import transformers

    with pytest.raises(UserError, match='the SAM .*none. could not be loaded .*hf download .*a local folder'):
        SAMRefinement(str(tmp_path / 'none')).load()
    looked = []

    def from_pretrained(model, **options):
        looked.append((model, options['local_files_only'], options['use_safetensors']))
        raise OSError('not cached' if options['local_files_only'] else 'no network')

    monkeypatch.setattr(transformers.SamModel, 'from_pretrained', from_pretrained)
    with pytest.raises(UserError, match="the SAM 'facebook/sam-vit-base' .*not cached; OSError: no network"):
        SAMRefinement().load()
    assert looked == [('facebook/sam-vit-base', True, True), ('facebook/sam-vit-base', False, True)]


def test_without_transformers(monkeypatch):
    own = builtins.__import__

    def without(name, *arguments, **others):
        if name == 'transformers':
            raise ImportError("No module named 'transformers'")
        return own(name, *arguments, **others)

    monkeypatch.setattr(builtins, '__import__', without)
    for settings in ({}, dict(random_weights=0)):
        with pytest.raises(UserError, match=r"needs `transformers`.*pip install 'fsa-seg\[masks\]'"):
            SAMRefinement(**settings)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(coarse_thresh=1.5), r'coarse_thresh is 1\.5; it has to be a number, 0 to 1 \(published: 0\.2 on VOC'),
        (dict(iou_thresh='0.8'), r"iou_thresh is '0\.8'; .*published: 0\.8"),
        (dict(least_area=0), r'least_area is 0; it has to be a whole number, 1 or more \(published: 225\)'),
        (dict(random_weights=-1), r'random_weights is -1'),
        (dict(model_args=dict(vision_config=dict(image_size='wide'))), 'SAMRefinement'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        SAMRefinement(**dict(dict(random_weights=0), **settings)).load()
