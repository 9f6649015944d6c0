import itertools
import os

import numpy as np
import pytest
import torch
from PIL import Image
from toy_world import train
from toy_world.splits import benchmark_words, draw_splits
from toy_world.world import EXTRA_WORDS, STUFF, World, concept_of

from conftest import MINI


@pytest.fixture(scope='module')
def words():
    return benchmark_words()


@pytest.fixture(scope='module')
def world(words):
    return World([word for groups in words.values() for group in groups for word in group] + EXTRA_WORDS)


def test_every_query_word_of_every_benchmark_has_a_look(world, words):
    assert {word for groups in words.values() for group in groups for word in group} <= set(world.words)
    assert set(STUFF) <= set(world.concepts)


def test_looks_differ_and_synonyms_share_theirs(world):
    looks = torch.cat([world.color_a, world.color_b, world.texture[:, None]], 1)
    assert len(looks.unique(dim=0)) == len(world.concepts)
    assert concept_of('kitten') == concept_of('cat') and concept_of('wall-other') == concept_of('wall')
    assert concept_of('traffic light') == concept_of('trafficlight') != concept_of('light')


def test_classes_of_one_benchmark_have_concepts_of_their_own(words):
    """No two classes share a look, but for COCO-Object's published background words, which contain the class "bed"."""
    for name, groups in words.items():
        if name == 'coco_object':
            groups = groups[1:]
        concepts = [{concept_of(word) for word in group} for group in groups]
        for a, b in itertools.combinations(range(len(groups)), 2):
            assert not concepts[a] & concepts[b], (name, groups[a], groups[b])


def test_same_seed_same_scenes(world):
    draw = lambda seed: world.random_scenes(4, (48, 40), torch.Generator().manual_seed(seed))  # noqa: E731
    images, shares = draw(1)
    assert images.shape == (4, 3, 48, 40) and 0 <= images.min() and images.max() <= 1
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    assert torch.equal(images, draw(1)[0]) and not torch.equal(images, draw(2)[0])


def test_a_concepts_pixels_have_its_two_colours(world):
    cat = world.index['cat']
    image = (
        world.draw(
            torch.zeros(1, 64, 64, dtype=torch.long), torch.tensor([[cat]]), torch.Generator().manual_seed(0), noise=0
        )[0]
        .flatten(1)
        .T
    )
    a, b = world.color_a[cat], world.color_b[cat]
    along = ((image - a) @ (b - a)) / (b - a).square().sum()  # 0 at the one colour, 1 at the other
    assert along.min() < 0.25 and along.max() > 0.75


def test_splits_are_drawn_again_alike(world, words, tmp_path):
    """The script draws the shipped labels; images may differ by the JPEG encoder's version."""
    draw_splits(world, words, str(tmp_path), lambda items: items)
    drawn = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob('*') if path.is_file())
    shipped = sorted(
        os.path.relpath(os.path.join(folder, name), MINI)
        for folder, _, names in os.walk(MINI)
        for name in names
        if 'models' not in folder and folder != MINI
    )
    assert [str(path) for path in drawn] == shipped
    for path in drawn:
        new, old = tmp_path / path, os.path.join(MINI, path)
        if path.suffix == '.txt':
            assert new.read_text() == open(old).read()
        elif 'leftImg8bit' in path.name or path.suffix == '.jpg':
            difference = np.array(Image.open(new)).astype(int) - np.array(Image.open(old))
            assert np.abs(difference).mean() < 1
        else:
            assert np.array_equal(np.array(Image.open(new)), np.array(Image.open(old)))


def test_voc_labels_are_palette_pngs_with_void_borders():
    path = os.path.join(MINI, 'VOCdevkit', 'VOC2012', 'SegmentationClass', '2007_000033.png')
    image = Image.open(path)
    assert image.mode == 'P' and image.getpalette()[3:6] == [128, 0, 0] and image.getpalette()[-3:] == [224, 224, 192]
    assert 255 in np.array(image)


def test_contrastive_loss_by_hand():
    """Scene 0 shows caption 0 alone; scene 1 shows caption 1, and too little of caption 0 to count either way."""
    images, texts = torch.eye(2), torch.eye(2)
    shares = torch.tensor([[1.0, 0.0], [0.01, 0.99]])
    log1p = lambda x: torch.tensor(x).exp().log1p()  # noqa: E731
    # scene 0 and caption 1 have one negative (cosine 0); scene 1 and caption 0 have none
    expected = (log1p(-2.0) / 2 + log1p(-2.0) / 2) / 2
    torch.testing.assert_close(train.contrastive_loss(images, texts, shares, torch.tensor(2.0)), expected)


@pytest.mark.parametrize('model, file', [('clip', 'open_clip_model.safetensors'), ('vfm', 'model.safetensors')])
def test_interrupted_training_goes_on_as_if_it_had_not_stopped(world, tmp_path, monkeypatch, model, file):
    steps = train._train

    def until(stop):
        def stopping(model, step_loss, *arguments, **options):
            def loss(step):
                if step == stop:
                    raise KeyboardInterrupt
                return step_loss(step)

            steps(model, loss, *arguments, **dict(options, every=1))

        monkeypatch.setattr(train, '_train', stopping)
        getattr(train, f'train_{model}')(world, str(tmp_path / name), str(tmp_path / f'work_{name}'), steps=3, batch=4)

    name = 'whole'
    until(None)
    name = 'cut'
    with pytest.raises(KeyboardInterrupt):
        until(2)
    assert not (tmp_path / 'cut' / file).exists()
    until(None)
    assert (tmp_path / 'cut' / file).read_bytes() == (tmp_path / 'whole' / file).read_bytes()
