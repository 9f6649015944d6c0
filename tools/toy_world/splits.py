"""Draw the mini splits: scenes of the toy world in each benchmark's folders, file formats and label encodings."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from fsa_seg.config.components import class_names, component_names, load_component, protocol_settings
from fsa_seg.models.text import class_words

from .world import STUFF, World, concept_of

VOID = 255
SIZES = ((240, 320), (240, 320), (320, 240), (225, 300), (214, 320), (240, 240))  # heights and widths, in turn
Words = dict[str, list[set[str]]]  # data set -> words of each class


# whose words the shipped splits were drawn with: other words of a class would draw other scenes
PROTOCOLS = (
    'clearclip',
    'fsa',
    'naclip',
    'naclip_plain',
    'pearl',
    'pearl_plain',
    'proxyclip',
    'resclip',
    'scclip',
    'sclip',
    'sfp',
)


def benchmark_words() -> Words:
    """Return the words of each class of every data set, over the protocols that the splits were drawn with."""
    words = {}
    for name in component_names('dataset'):
        part = load_component('dataset', name)
        if 'classes' in part:  # a data set whose files give the classes has no mini split
            continue
        classes = class_names(part)
        groups = words.setdefault(name, [set() for _ in classes])
        for protocol in PROTOCOLS:
            rules = protocol_settings(load_component('protocol', protocol), name)['words']
            for group, class_group in zip(groups, class_words(classes, **rules)):
                group.update(class_group)
    return words


def draw_splits(world: World, words: Words, folder: str, progress: Callable[[Iterable], Iterable]) -> None:
    """Write all mini splits below `folder`.

    Args:
        world: the toy world.
        words: see `benchmark_words`.
        folder: data root.
        progress: function that wraps an iterable, such as `tqdm`.
    """
    for _, draw in progress(
        [('voc', _voc), ('context', _context), ('coco', _coco), ('cityscapes', _cityscapes), ('ade20k', _ade20k)]
    ):
        draw(world, words, folder)


def scenes(
    world: World,
    concepts: Sequence[str],
    count: int,
    seed: int,
    stuff: int,
    things: int,
    sizes: Sequence[tuple[int, int]] = SIZES,
    radius: tuple[float, float] = (0.13, 0.21),
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield `count` scenes: image (height, width, 3) uint8 and concept map (height, width).

    Args:
        world: the toy world.
        concepts: the scenes' concepts; dealt out in turn from a shuffled deck.
        count: number of scenes.
        seed: seed of the first scene, below every training seed.
        stuff: number of a scene's stuff regions.
        things: number of a scene's things.
        sizes: heights and widths, in turn.
        radius: see `World.layout`.
    """
    decks = [[c for c in concepts if (c in STUFF) == kind] for kind in (True, False)]
    dealt = [_deal(deck, size * count, seed) for deck, size in zip(decks, (stuff, things))]
    for i in range(count):
        generator = torch.Generator().manual_seed(seed + i)
        chosen = [
            torch.tensor([world.index[c] for c in deal[i * n : (i + 1) * n]], dtype=torch.long)[None]
            for deal, n in zip(dealt, (stuff, things))
        ]
        slots = world.layout(*chosen, sizes[i % len(sizes)], generator, radius)
        concept_of_slot = torch.cat(chosen, 1)
        image = world.draw(slots, concept_of_slot, generator)[0]
        image = (image * 255).round().byte().permute(1, 2, 0).numpy()
        yield image, concept_of_slot[0][slots[0]].numpy()


def _deal(deck, count, seed):
    """Return at least `count` cards, from shuffled decks in sequence."""
    generator, cards = torch.Generator().manual_seed(seed), []
    while len(cards) < count:
        cards += [deck[i] for i in torch.randperm(len(deck), generator=generator)]
    return cards


def _label_table(world, words, first=0, no_class=VOID):
    """Return the label of each concept of the world: `first` + class index; `no_class` for a concept of no class."""
    table = np.full(len(world.concepts), no_class, np.uint8)
    for label, group in enumerate(words):
        for word in group:
            table[world.index[concept_of(word)]] = first + label
    return table


def _concepts(*groups_of_words):
    """Return the concepts of all words, sorted."""
    return sorted({concept_of(word) for groups in groups_of_words for group in groups for word in group})


def _edges(concepts):
    """Return a mask of the pixels whose neighbour above, below, left or right differs."""
    edge = np.zeros(concepts.shape, bool)
    for axis in (0, 1):
        step = np.diff(concepts, axis=axis) != 0
        pad = [(0, 0), (0, 0)]
        pad[axis] = (0, 1)
        edge |= np.pad(step, pad)
        pad[axis] = (1, 0)
        edge |= np.pad(step, pad)
    return edge


def _voc(world, words, folder):
    root = os.path.join(folder, 'VOCdevkit', 'VOC2012')
    background, *things = words['voc21']
    table = _label_table(world, words['voc21'], no_class=0)
    stuff = [c for c in _concepts([background]) if c in STUFF and c != 'background']
    names = []
    for i, (image, concepts) in enumerate(scenes(world, stuff + _main_concepts(things), 10, 100, 3, 4)):
        labels = table[concepts]
        labels[_edges(labels)] = VOID
        names.append(f'2007_{33 + 97 * i:06d}')
        _save_jpeg(image, root, 'JPEGImages', names[-1])
        _save_labels(labels, os.path.join(root, 'SegmentationClass', names[-1] + '.png'), palette=True)
    _save_names(names, root, 'ImageSets', 'Segmentation', 'val.txt')


def _context(world, words, folder):
    root = os.path.join(folder, 'VOCdevkit', 'VOC2010')
    table = _label_table(world, words['context60'], no_class=0)
    names = []
    for i, (image, concepts) in enumerate(scenes(world, _concepts(words['context60']), 10, 200, 3, 4)):
        names.append(f'2008_{2 + 83 * i:06d}')
        _save_jpeg(image, root, 'JPEGImages', names[-1])
        _save_labels(table[concepts], os.path.join(root, 'SegmentationClassContext', names[-1] + '.png'))
    _save_names(names, root, 'ImageSets', 'SegmentationContext', 'val.txt')


def _coco(world, words, folder):
    root = os.path.join(folder, 'coco_stuff164k')
    stuff_table = _label_table(world, words['coco_stuff164k'])
    object_table = np.where(stuff_table < 80, stuff_table + 1, 0).astype(np.uint8)
    concepts_shown = _concepts(words['coco_stuff164k']) + ['background']  # a region of no class: 255, or 0 for objects
    for i, (image, concepts) in enumerate(scenes(world, concepts_shown, 16, 300, 6, 6, radius=(0.13, 0.19))):
        name = f'{139 + 5413 * i:012d}'
        _save_jpeg(image, root, 'images/val2017', name)
        for table, suffix in ((stuff_table, '_labelTrainIds.png'), (object_table, '_instanceTrainIds.png')):
            _save_labels(table[concepts], os.path.join(root, 'annotations', 'val2017', name + suffix))


def _cityscapes(world, words, folder):
    root = os.path.join(folder, 'cityscapes')
    table = _label_table(world, words['cityscapes'])
    concepts_shown = _concepts(words['cityscapes']) + ['background']  # a region of no class: 255
    for i, (image, concepts) in enumerate(
        scenes(world, concepts_shown, 8, 400, 4, 7, sizes=((256, 512),), radius=(0.13, 0.22))
    ):
        city = ('frankfurt', 'lindau', 'munster')[i % 3]
        name = f'{city}_{i:06d}_{19 + 577 * i:06d}'
        path = os.path.join(root, 'leftImg8bit', 'val', city, name + '_leftImg8bit.png')
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Image.fromarray(image).save(path, optimize=True)
        _save_labels(table[concepts], os.path.join(root, 'gtFine', 'val', city, name + '_gtFine_labelTrainIds.png'))


def _ade20k(world, words, folder):
    root = os.path.join(folder, 'ade', 'ADEChallengeData2016')
    table = _label_table(world, words['ade20k'], first=1, no_class=0)
    concepts_shown = _concepts(words['ade20k']) + ['background']  # a region of no class: 0
    sizes = (240, 240), (250, 240), (240, 240), (224, 240)
    for i, (image, concepts) in enumerate(scenes(world, concepts_shown, 16, 500, 4, 7, sizes, radius=(0.12, 0.18))):
        name = f'ADE_val_{1 + i:08d}'
        _save_jpeg(image, root, 'images/validation', name)
        _save_labels(table[concepts], os.path.join(root, 'annotations', 'validation', name + '.png'))


def _main_concepts(groups):
    """Return a concept for each class, that of most words: a published synonym can be the name of another class."""
    return sorted(Counter(sorted(map(concept_of, group))).most_common(1)[0][0] for group in groups)


def _save_jpeg(image, root, sub, name):
    os.makedirs(os.path.join(root, sub), exist_ok=True)
    Image.fromarray(image).save(os.path.join(root, sub, name + '.jpg'), quality=93, subsampling=0)


def _save_labels(labels, path, palette=False):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    image = Image.fromarray(labels)
    if palette:
        image.putpalette(_voc_palette())
    image.save(path)


def _voc_palette():
    """Return VOC's colour map, 256 × 3 values: the bits of the label spread over the channels, highest first."""
    colors = np.zeros((256, 3), np.uint8)
    for label in range(256):
        for bit in range(8):
            for channel in range(3):
                colors[label, channel] |= ((label >> (3 * bit + channel)) & 1) << (7 - bit)
    return colors.flatten().tolist()


def _save_names(names, *path):
    path = os.path.join(*path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'w') as f:
        f.write('\n'.join(names) + '\n')
