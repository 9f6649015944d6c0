"""Rows on one picture that is held in memory: each gives what `Segmenter` gives alone."""

import gc

import numpy as np
import pytest
import torch
from PIL import Image

from fsa_seg import Segmenter
from fsa_seg.apps.demo.comparison import Comparison, Row
from fsa_seg.errors import UserError
from fsa_seg.models import weights
from fsa_seg.ops.feedback import FSA
from fsa_seg.visualization.pictures import heat

from conftest import MINI

PATH = f'{MINI}/VOCdevkit/VOC2012/JPEGImages/2007_000227.jpg'
CLASSES = ['sky; wall', 'cat; kitten', 'cow', 'wood']
SCLIP, PROXYCLIP = Row('sclip', 'fsa'), Row('proxyclip', 'fsa')
NAMES = dict(backbone='toy', vfm='toy', protocol='proxyclip')


@pytest.fixture(scope='module')
def comparison():
    return Comparison(**NAMES)


@pytest.fixture
def picture(comparison):
    with open(PATH, 'rb') as f:
        return comparison.open(f.read(), 'a.jpg')


def segmenter(row, feedback=None, **changes):
    return Segmenter(method=row.method, feedback=feedback or row.feedback, **{**NAMES, **changes})


def test_each_row_is_what_segmenter_gives(comparison, picture):
    """Rows with region maps, with hooks on the whole image, with earlier blocks: one pass, and one after another."""
    rows = [Row('sclip'), SCLIP, PROXYCLIP, Row('corrclip', 'fsa'), Row('trident'), Row('resclip'), Row('scclip')]
    together = picture.segment(CLASSES, rows, 0.2)
    assert len({labels.tobytes() for labels in together}) > 4
    for row, labels in zip(rows, together):
        expected = segmenter(row).segment(PATH, CLASSES, 0.2, scores=True)
        assert labels.dtype == np.uint8 and np.array_equal(labels, expected.labels), row
        assert np.array_equal(picture.segment(CLASSES, [row], 0.2)[0], labels), row
        np.testing.assert_allclose(picture.scores(CLASSES, row), expected.scores, atol=1e-5)


def test_own_protocols_are_passes_of_their_own():
    own = Comparison(**{**NAMES, 'protocol': 'own'})
    rows = [Row('sclip'), PROXYCLIP, Row('naclip', 'fsa')]
    for row, labels in zip(rows, own.open(PATH).segment(CLASSES, rows)):
        assert np.array_equal(labels, segmenter(row, protocol='own').segment(PATH, CLASSES).labels), row


def test_words_stay_in_memory(monkeypatch, tmp_path):
    monkeypatch.setenv('FSA_SEG_CACHE', str(tmp_path))
    words = ['a word of a user', 'another']
    labels = Comparison(**NAMES).open(PATH).segment(words, [SCLIP])[0]
    assert not list(tmp_path.iterdir())
    assert np.array_equal(segmenter(SCLIP).segment(PATH, words).labels, labels)
    assert len(list(tmp_path.rglob('*.safetensors'))) == len(words)


@pytest.mark.parametrize('method', ['maskclip', 'sclip', 'proxyclip', 'corrclip'])
def test_why_is_what_attention_gives(picture, method):
    """Settings one after another, each as if it came first; CorrCLIP sees the whole image."""
    one, cosines = segmenter(Row(method), True), set()
    changes = [dict(lam=1.0), dict(terms=['WA', 'W']), dict(p=0.2, scale=10), {}][: 2 if method == 'corrclip' else 4]
    for settings in changes:
        found, one.model.feedback = picture.why(CLASSES, method, 50, 40, settings), FSA(**settings)
        expected = one.attention(PATH, CLASSES, 50, 40)
        assert np.array_equal(found.labels, expected.labels) and np.array_equal(found.without, expected.without)
        assert (found.window, found.patch) == (expected.window, expected.patch)
        height, width = found.maps['attention'].shape
        place = found.patch[0] * height // found.grid[0], found.patch[1] * width // found.grid[1]
        for name, values in expected.rows._asdict().items():
            np.testing.assert_allclose(found.maps[name][place], values[found.patch], rtol=1e-5, atol=1e-7)
        cosines.add(found.words[0][3])
    assert len(cosines) == len(changes)


@pytest.mark.parametrize('size', [(333, 251), (251, 333), (31, 300)])
def test_a_window_beyond_the_picture_ends_at_its_edge(size):
    """LPOSS's own protocol pads images; the last windows reach into the padding."""
    own = Comparison(**{**NAMES, 'protocol': 'own'}).open(np.asarray(Image.open(PATH).resize(size)))
    found = own.why(CLASSES, 'lposs', size[0] - 1, size[1] - 1)
    assert found.window[2:] == size and min(found.window) >= 0
    for values in found.maps.values():
        heat(own.preview, found.window, values)


def test_another_method_or_other_words_have_labels_of_their_own(picture):
    changes = (
        ('sclip', CLASSES, 0.0),
        ('maskclip', CLASSES, 0.0),
        ('maskclip', CLASSES[1:], 0.0),
        ('maskclip', CLASSES, 0.9),
    )
    for method, classes, prob_thd in changes:
        [expected] = picture.segment(classes, [Row(method)], prob_thd)
        assert np.array_equal(picture.why(classes, method, 50, 40, prob_thd=prob_thd).without, expected)


def test_words_of_a_patch_are_its_cosines(comparison, picture):
    found = picture.why(CLASSES, 'sclip', 50, 40)
    words = {word: i for i, line in enumerate(CLASSES) for word in line.split('; ')}
    assert {word: i for word, i, _, _ in found.words} == words
    after = [fed for *_, fed in found.words]
    assert after == sorted(after, reverse=True) and any(bare != fed for _, _, bare, fed in found.words)


def test_a_later_pass_runs_the_last_block_alone(comparison, picture):
    """Another threshold, feedback or method of one VFM: trunk and VFM do not run again."""
    model, runs = comparison.segmentor(PROXYCLIP)[0], []
    hooks = [
        model.visual.conv1.register_forward_hook(lambda *_: runs.append('trunk')),
        model.vfms['proxy'].register_forward_hook(lambda *_: runs.append('VFM')),
    ]
    try:
        picture.segment(CLASSES, [PROXYCLIP])
        first = list(runs)
        assert sorted(set(first)) == ['VFM', 'trunk']
        picture.segment(CLASSES[:2], [Row('proxyclip'), SCLIP], 0.5)
        for lam in (1.0, 2.0):
            picture.why(CLASSES, 'proxyclip', 3, 4, dict(lam=lam))
        assert runs == first
        picture.segment(CLASSES, [Row('resclip')])  # earlier blocks
        assert runs.count('trunk') == 2 * first.count('trunk')
        picture.segment(CLASSES, [Row('gem')])
        count = len(runs)
        picture.segment(CLASSES, [Row('resclip'), Row('gem'), PROXYCLIP])
        assert len(runs) == count
    finally:
        for hook in hooks:
            hook.remove()


def test_a_large_picture_is_answered_in_full(comparison):
    """What is drawn is small; labels and clicks are those of the original's pixels."""
    rgb = np.asarray(Image.open(PATH).resize((2400, 1800)))
    picture = comparison.open(rgb)
    assert picture.size == (1800, 2400) and picture.preview.shape == (768, 1024, 3)
    [labels] = picture.segment(CLASSES, [SCLIP])
    assert np.array_equal(labels, segmenter(SCLIP).segment(rgb, CLASSES).labels)
    found = picture.why(CLASSES, 'sclip', 2399, 1799)
    assert found.labels.shape == (768, 1024) and found.window[2:] == (2400, 1800)


def test_more_than_256_classes(picture):
    [labels] = picture.segment([f'word {i}' for i in range(257)], [Row('sclip')])
    assert labels.dtype == np.uint16


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda p: p.segment([], [SCLIP]), 'give at least one'),
        (lambda p: p.segment(['a', ' ; '], [SCLIP]), 'give at least one'),
        (lambda p: p.segment(['cat', 'Cat'], [SCLIP]), 'one text to CLIP'),
        (lambda p: p.segment(['cat'], [SCLIP], 1.5), 'prob_thd'),
        (lambda p: p.segment(['cat'], [Row('scilp')]), 'did you mean .sclip'),
        (lambda p: p.why(['cat'], 'sclip', 320, 0), 'lies outside the image'),
        (lambda p: p.why(['cat'], 'sclip', 0, 0, dict(lam=-1)), 'FSA: lam is -1'),
        (lambda p: p.why(['cat'], 'sclip', 0, 0, dict(terms=[])), 'FSA: terms'),
        (lambda p: p.why(['cat'], 'sclip', 0, 0, dict(rounds=2)), 'no setting rounds'),
    ],
)
def test_bad_input(picture, call, message):
    with pytest.raises(UserError, match=message):
        call(picture)
    assert picture.segment(['cat', 'wood'], [SCLIP])[0].any()  # and the picture works on


def test_a_picture_that_is_none(comparison):
    for data in (b'', b'no image at all'):
        with pytest.raises(UserError, match='a.jpg'):
            comparison.open(data, 'a.jpg')


def test_missing_weights_are_named_at_once(monkeypatch, tmp_path):
    """All that a row misses, without a try to download it."""
    monkeypatch.setattr(weights, 'try_to_load_from_cache', lambda *_, **__: None)
    missing = Comparison('clip_vit-b16').open(PATH)
    for row, names in ((SCLIP, 'clip_vit-b16'), (PROXYCLIP, 'clip_vit-b16 dino_vit-b8')):
        with pytest.raises(UserError, match=f'fsa-seg weights get {names}$'):
            missing.segment(['cat'], [row])


def test_notes_and_names():
    assert Comparison('clip_vit-b16').note is None and Comparison(**NAMES).note.startswith('These are toy models')
    assert 'random' in Comparison('toy', 'toy', random_weights=0).note
    for options, text in ((dict(backbone='clip_vit-b61'), 'did you mean'), (dict(random_weights=-1), 'random_weights')):
        with pytest.raises(UserError, match=text):
            Comparison(**options)


def test_a_released_picture_is_worked_on_anew(comparison, picture):
    [before] = picture.segment(CLASSES, [PROXYCLIP])
    picture.release()
    assert np.array_equal(picture.segment(CLASSES, [PROXYCLIP])[0], before)
    assert picture.path is None and comparison.open(PATH).path == PATH


def test_a_picture_that_goes_leaves_no_tensor(comparison):
    """No part of a pass refers to itself in a circle: else memory would grow until Python looks for circles."""
    rows = comparison.rows

    def look():
        opened = comparison.open(PATH)
        opened.segment(CLASSES, rows)
        opened.why(CLASSES, 'sclip', 20, 30)

    for row in rows:
        comparison.segmentor(row)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        look()
        gc.collect()
        left = [tuple(part.shape) for part in gc.garbage if isinstance(part, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left
