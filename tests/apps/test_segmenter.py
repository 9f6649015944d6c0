"""`Segmenter`: what it takes, and that several threads may call it at once."""

import concurrent.futures
import copy
import os
import pickle
import re

import numpy as np
import pytest
import torch
from mmseg.registry import MODELS
from PIL import Image

from fsa_seg import Segmenter
from fsa_seg.apps.segmenter import check_device
from fsa_seg.config.components import has_toy_models, load_components
from fsa_seg.errors import UserError

from conftest import MINI

FOLDER = os.path.join(MINI, 'VOCdevkit', 'VOC2012', 'JPEGImages')
PATHS = [os.path.join(FOLDER, name) for name in sorted(os.listdir(FOLDER))[:4]]
WORDS = (['cat; kitten', 'grass', 'wall'], ['sky', 'wood'])


@pytest.fixture(scope='module')
def segmenter():
    return Segmenter(backbone='toy', vfm='toy', method='sclip', device='cpu')


def test_eight_threads_get_what_they_get_alone(segmenter):
    """With different images, words and thresholds on one segmenter."""
    jobs = [(path, words, threshold) for path in PATHS for words in WORDS for threshold in (0.0, 0.5)][:16]
    alone = [segmenter.segment(*job, scores=True) for job in jobs]
    assert len({found.labels.tobytes() for found in alone}) > 10
    again = Segmenter(backbone='toy', vfm='toy', method='sclip', device='cpu')  # which has seen none of the words
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: again.segment(*job, scores=True), jobs))
    for ours, theirs in zip(together, alone):
        assert np.array_equal(ours.labels, theirs.labels) and np.array_equal(ours.scores, theirs.scores)


def test_threads_that_look_at_attention_change_nothing_for_others(segmenter):
    expected = segmenter.segment(PATHS[0], WORDS[0]).labels
    jobs = [lambda: segmenter.attention(PATHS[0], WORDS[0], 50, 40), lambda: segmenter.segment(PATHS[0], WORDS[0])] * 4
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = [job.result() for job in [pool.submit(job) for job in jobs]]
    assert all(np.array_equal(result.labels, expected) for result in results)
    assert segmenter.model.feedback is not None


def test_a_list_of_images_of_any_kind(segmenter):
    """A path, a PIL image and an array give the same; a list gives a list."""
    picture = Image.open(PATHS[0]).convert('RGB')
    single = segmenter.segment(PATHS[0], WORDS[0])
    several = segmenter.segment([PATHS[0], picture, np.asarray(picture), PATHS[1]], WORDS[0])
    assert isinstance(several, list) and len(several) == 4
    assert all(np.array_equal(found.labels, single.labels) for found in several[:3])
    assert not np.array_equal(several[3].labels, single.labels)
    assert segmenter.segment([], WORDS[0]) == []


@pytest.mark.parametrize(
    'classes, message',
    [
        ('cat', "classes is 'cat'; give a list with a text for each class"),
        (['cat', 3], 'give a list with a text for each class'),
        ([], 'give at least one'),
        (['cat', ' ; '], 'each with a word'),
        (['cat', 'Cat'], 'are one text to CLIP'),
    ],
)
def test_bad_classes(segmenter, classes, message):
    with pytest.raises(UserError, match=message):
        segmenter.segment(PATHS[0], classes)


def test_a_bad_image_of_a_list_is_found_before_time_is_spent(segmenter, monkeypatch):
    monkeypatch.setattr(type(segmenter.model), 'encode', lambda *_: pytest.fail('words were embedded'))
    with pytest.raises(UserError, match='no_such.png'):
        segmenter.segment([PATHS[0], 'no_such.png'], ['cat'])


@pytest.mark.parametrize('protocol', ['naclip', 'naclip_plain'])
def test_naclip_on_a_picture(protocol):
    """Under the default settings of its protocol; PAMR changes the labels, and one pixel is no error."""
    naclip = Segmenter(backbone='toy', method='naclip', protocol=protocol, device='cpu')
    found = naclip.segment(PATHS[0], WORDS[0])
    assert (naclip.model.refinement is None) == (protocol == 'naclip_plain')
    bare = Segmenter(backbone='toy', method='naclip', protocol='naclip_plain', device='cpu').segment(PATHS[0], WORDS[0])
    assert np.array_equal(found.labels, bare.labels) == (protocol == 'naclip_plain')
    pixel = naclip.segment(np.full((1, 1, 3), 90, np.uint8), WORDS[0])
    assert pixel.labels.shape == (1, 1)


def test_a_whole_image_at_the_place_of_a_pixel():
    """A window of 0: the patch under a pixel of a long image is where the pixel is."""
    segmenter = Segmenter(backbone='toy', method='maskclip', protocol='naclip_plain', device='cpu')
    segmenter.model.window = 0
    image = np.zeros((150, 310, 3), np.uint8)
    found = segmenter.attention(image, WORDS[0], 300, 10)
    rows, columns = np.indices(found.rows.attention.shape)
    row, column = np.unravel_index(found.rows.attention.argmax(), found.rows.attention.shape)
    assert found.patch == (row, column) and found.window == (0, 0, 310, 150)
    assert column == columns.max() - (columns.max() + 1) * 10 // 310 or column >= columns.max() - 1
    assert row <= 2 and torch.tensor(found.rows.attention).sum() == pytest.approx(1.0, abs=1e-4) and rows.size


def test_results_are_short_texts(segmenter):
    """They say shape, classes and shares; fields, unpacking and copies are those of a named tuple."""
    found = segmenter.segment(PATHS[0], [*WORDS[0], *WORDS[1]], scores=True)
    share = 100 * (found.labels == 4).mean()
    pattern = r'Segmentation\(240×320, 4 classes: (\d+ % \w+; ){3}…; scores \(5, 240, 320\)\)'
    assert re.fullmatch(pattern, repr(found)) and f' {share:.0f} % wood;' in repr(found)
    labels, scores, picture = found
    assert labels is found.labels and found._fields == ('labels', 'scores', 'picture') and picture is found.picture
    for copied in (copy.copy(found), pickle.loads(pickle.dumps(found))):
        assert repr(copied) == repr(found) and copied.classes == ('cat', 'grass', 'wall', 'sky', 'wood')
    bare = found._replace(labels=np.arange(100000).reshape(100, 1000) // 99999, scores=None)
    assert repr(bare) == 'Segmentation(100×1000, 2 classes: 100 % class 0; <1 % class 1; no scores)'
    looked = segmenter.attention(PATHS[0], ['wood'], 50, 40)
    assert len(looked) == 6 and re.fullmatch(
        r'AttentionRows\(patch \(\d+, \d+\) of 14×14 in window \(.*\); 240×320, 1 class: 100 % wood\)', repr(looked)
    )


@pytest.mark.parametrize('gpus', [0, 2])
@pytest.mark.parametrize('device', ['cuda', 'cuda:7', 'gpu', '', 'mps', 'meta', torch.device('cuda', 7), 9, ['cpu']])
def test_a_device_that_torch_cannot_use(monkeypatch, device, gpus):
    """It is found before anything is built, and the message says what is there."""
    if (device == 'cuda' and gpus) or (device == 'mps' and torch.backends.mps.is_available()):
        return
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.setattr(MODELS, 'build', lambda *_: pytest.fail('a model was built'))
    there = 'has 2 GPUs that torch .*cpu, cuda:0, cuda:1' if gpus else 'has no GPU that torch .*leave device out, .*cpu'
    with pytest.raises(UserError, match=f'device={re.escape(repr(str(device)))}: this machine {there}'):
        Segmenter(backbone='toy', vfm='toy', method='sclip', device=device)


def test_the_note_of_toy_models(segmenter):
    """Real models have none; a method without a VFM does not count a VFM."""
    assert 'toy models, which know the toy world alone' in segmenter.note
    for method, backbone, vfm, toy in (
        ('sclip', 'clip_vit-b16', 'toy', False),
        ('proxyclip', 'clip_vit-b16', 'toy', True),
        ('proxyclip', 'clip_vit-b16', 'dino_vit-b8', False),
        ('clip', 'toy', None, True),
    ):
        assert has_toy_models(load_components(method, None, backbone, vfm)) == toy


def test_random_weights(segmenter):
    """They are those of the seed, and marked; trained weights give other labels."""
    first, again, other = (
        Segmenter(backbone='toy', vfm='toy', method='sclip', device='cpu', random_weights=seed) for seed in (0, 0, 1)
    )
    assert 'weights are random' in first.note
    found, same, differs = (made.segment(PATHS[0], WORDS[0], scores=True).scores for made in (first, again, other))
    assert np.array_equal(found, same) and not np.array_equal(found, differs)
    assert not np.array_equal(found, segmenter.segment(PATHS[0], WORDS[0], scores=True).scores)


def test_settings_of_fsa_are_checked_before_models_are_loaded(monkeypatch):
    monkeypatch.setattr('fsa_seg.models.segmentor.load_clip', lambda **_: pytest.fail('a model was loaded'))
    with pytest.raises(UserError, match=r"unknown key 'lamda' in feedback \(did you mean 'lam'"):
        Segmenter(backbone='toy', method='clip', feedback=dict(lamda=2), device='cpu')


def test_a_device_by_name_or_as_torchs():
    assert check_device('cpu') == check_device(torch.device('cpu')) == torch.device('cpu')
    made = Segmenter(backbone='toy', method='clip', feedback=False, device=torch.device('cpu'))
    assert made.segment(PATHS[0], WORDS[0]).labels.shape == (240, 320)


def test_check_device_leaves_the_gpu_untouched(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, '_lazy_init', lambda: pytest.fail('CUDA was started'))
    assert check_device('cuda:1') == torch.device('cuda:1') and check_device('cuda') == torch.device('cuda')
