"""Made-up results in the suite's format, for tests and pictures of a report: the numbers are made up.

    python tests/made_results.py DIR [--suite paper] [--images 40] [--cells N] [--seed 0]

No model runs and no data is read. Counts are drawn so that a cell's mIoU comes near its published figure, plus an
offset; some cells are left out. The device of every result is 'made up'.
"""

import argparse
import copy
import functools
import hashlib
import itertools
import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from mmengine import Config

from fsa_seg.config.components import class_names as names_of
from fsa_seg.config.compose import compose
from fsa_seg.config.fingerprint import Data, Entry, canonical, fingerprint
from fsa_seg.config.saved import to_json
from fsa_seg.config.suites import load_suite, suite_cells
from fsa_seg.evaluation.metric import metrics, sum_confusions
from fsa_seg.evaluation.report.published import published
from fsa_seg.evaluation.results import Cell, cell_id, make_result, write_result
from fsa_seg.ops.device import exact_float32

MADE = 'made up'  # the device of every made result
NASTY = (
    '<script>alert("made up")</script>',
    '</script><b>bold',
    '"quoted" & \'apostrophe\'',
    'a | b',
    '`code` $x_1$ *star*',
    'C:\\path\\name',
    'größe 图像 🐱',
    'line\u2028separator',
    '=1+1',
    'long ' * 40 + 'name',
)  # class names that break a careless page
# points between a published figure and the made one, in turn; None: the cell is left out
OFFSETS = (0.1, -0.3, 0.4, 1.3, -0.1, 0.2, -1.2, None, 0.0, -0.4, 0.3)
SIBLINGS = dict(voc20='voc21', context59='context60')  # data sets whose labels are another's without background
SPLITS = dict(SIBLINGS, coco_stuff164k='coco_object')  # data sets that share another's images
# data set: foreground classes of an image; share of the background, 0 without
SCENES = dict(voc21=(1.5, 0.7), context60=(4, 0.15), coco_object=(2.5, 0.6), cityscapes=(11, 0), ade20k=(8, 0))
SCENE = (5, 0)  # of other data sets
SIZES = ((375, 500), (500, 375), (333, 500), (480, 640), (427, 640))
LARGE = dict(cityscapes=(1024, 2048))  # sizes of all images
LEVELS = dict(voc21=57, context60=31, coco_object=32, voc20=80, context59=34, coco_stuff164k=22, cityscapes=32)
LEVEL = 17  # mIoU of other data sets without a published figure
SETTINGS = dict(lam=(1.0, 2.0, 4.0, 5.0, 6.0, 8.0), p=(0.2, 0.3, 0.6, 0.7, 0.9, 1.0), rounds=(1, 2, 3))
MANY = 50  # classes; with fewer, a class that is absent from the truth would move mIoU much
STEPS = 40  # of the search for the difficulty that gives a target


class World(NamedTuple):
    """The made truth of a data set: parallel arrays, an element for each class of each image.

    Attributes:
        classes: K.
        images: number of images.
        image, truth, pixels: index of the image, class, and number of pixels.
        ease: logit of the share of pixels that come out right, the same for all rows of a table.
        wrong: (n, 3) classes that the other pixels go to.
        shares: (n, 3) shares of these classes.
    """

    classes: int
    images: int
    image: np.ndarray
    truth: np.ndarray
    pixels: np.ndarray
    ease: np.ndarray
    wrong: np.ndarray
    shares: np.ndarray


def make_results(
    folder: str | os.PathLike,
    suite: str = 'paper',
    images: int = 40,
    seed: int = 0,
    backbones: Sequence[str] | None = None,
    targets: Callable[[Mapping], float | None] | None = None,
    settings: Sequence[Mapping] = (),
    words: Sequence[str] = (),
    class_names: Sequence[str] = (),
    partial: bool = False,
    toy: bool = False,
    random_weights: int | None = None,
    most: int | None = None,
    **chosen: Sequence,
) -> list[str]:
    """Write made-up results of a suite's cells, and return their paths.

    Args:
        folder: gets the files; made if absent.
        suite: name or file of a suite.
        images: number of images of each data set.
        seed: of all that is drawn.
        backbones: take the place of the suite's.
        targets: gives the mIoU of a cell, or None to leave the cell out; by default see `Targets`.
        settings: FSA's settings, such as dict(lam=2.0): each gives all cells of FSA once more.
        words: names of made files of words: each gives all cells once more.
        class_names: take the place of the first names of classes, such as NASTY.
        partial: whether the results are of a part of the data set.
        toy: whether backbone, VFM and data are those of the toy world.
        random_weights: seed of random weights.
        most: largest number of results.
        chosen: further lists that take the place of the suite's, such as dataset=['voc21'].
    """
    exact_float32()  # as before a run: the fingerprint has the state of TF32
    if toy:
        backbones, chosen = ['toy'], dict(chosen, vfm=['toy'])
    cells = suite_cells(load_suite(suite), **chosen, **({} if backbones is None else dict(backbone=backbones)))
    options = dict(data_root='data/mini' if toy else 'data', random_weights=random_weights)
    options['limit'] = images if partial else None
    targets, written, targeted = targets or Targets(seed), {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        composed = _composed(cells, options, words, class_names, temporary)
        for cell in _with_settings((_prepared(config, images) for config in composed), settings):
            path = os.path.join(folder, f'{cell_id(cell.config.cell, cell.hash)}.json')
            if path in targeted:  # two names of one protocol
                continue
            target = targeted[path] = targets(dict(cell.config.cell))
            if target is not None:
                _write(path, cell, target, seed, written)
            if sum(value is not None for value in targeted.values()) == most:
                break
    return [path for path, target in targeted.items() if target is not None]


class Targets:
    """The mIoU of each cell: near the published figure; without one, plausible and about 1 point higher with FSA.

    The offsets OFFSETS give `code` figures all verdicts.

    Args:
        seed: of what is drawn.
    """

    def __init__(self, seed: int = 0):
        self.seed, self.hosts, self.codes, self.others = seed, {}, 0, 0

    def __call__(self, cell: Mapping) -> float | None:
        """Return the mIoU of a cell, in percent; None leaves the cell out."""
        rng = _rng(self.seed, 'target', cell)
        key = tuple(cell[name] for name in ('dataset', 'backbone', 'method', 'vfm'))
        figures = published({**cell, 'toy': False, 'limit': None, 'random_weights': None})
        if figures and figures[0].comparable == 'code':
            offset = OFFSETS[self.codes % len(OFFSETS)]
            self.codes += 1
        else:
            self.others += 1
            offset = None if self.others % 29 == 0 else rng.normal(0, 0.4)
        if figures:
            value = figures[0].value
        elif cell['feedback'] and key in self.hosts:
            value = self.hosts[key] + rng.normal(1.0, 0.6)
        else:
            value = self.hosts.get(key, LEVELS.get(cell['dataset'], LEVEL))
        if not cell['feedback']:
            self.hosts[key] = value + (offset or 0)
        return None if offset is None else min(max(value + offset, 1.0), 99.0)


@functools.lru_cache
def make_world(dataset: str, classes: int, images: int, seed: int = 0) -> World:
    """Return the made truth of a data set.

    Data sets of the same labels, with and without background, share images, classes, pixels and ease.

    Args:
        dataset: name.
        classes: K.
        images: number of images.
        seed: of what is drawn.
    """
    base = SIBLINGS.get(dataset, dataset)
    reduced = base != dataset
    rng, count = _rng(seed, 'world', base), classes + reduced
    usual, background = SCENES.get(base, SCENE)
    order = rng.permutation(np.arange(bool(background), count))
    frequency = 1 / (3 + np.arange(len(order)))
    rows = []
    for i in range(images):
        number = min(1 + rng.poisson(usual - 1), len(order))
        others = rng.choice(order, number, replace=False, p=frequency / frequency.sum())
        present = list(dict.fromkeys([order[i % len(order)], *others]))[:number]
        height, width = LARGE.get(base) or SIZES[rng.integers(len(SIZES))]
        ground = rng.beta(8 * background, 8 * (1 - background)) if background else 0
        shares = np.append(rng.dirichlet(np.full(len(present), 1.2)) * (1 - ground), ground)[: number + bool(ground)]
        ease = rng.normal(0, 0.7) + rng.normal(0, 0.8, len(shares))
        pixels = np.maximum((shares * height * width * 0.95).astype(int), 50)
        rows += [(i, *row) for row in zip(np.append(present, 0), pixels, ease)]
    image, truth, pixels, ease = (np.array(column) for column in zip(*rows))
    ease = ease + rng.normal(0, 1.0, count)[truth]
    if reduced:
        image, truth, pixels, ease = (values[truth > 0] for values in (image, truth - 1, pixels, ease))
    return World(classes, images, image, truth, pixels, ease, *_confusions(image, truth, classes, _rng(seed, dataset)))


def _confusions(image, truth, classes, rng):
    """Return the classes that wrong pixels go to, and their shares.

    They are a class of the image, and two that are like the truth, seldom one that may be absent from the truth.
    """
    present = np.unique(truth)
    like = {c: rng.permutation(present[present != c])[:3] for c in present}
    wrong = []
    for i, c in zip(image, truth):
        beside = truth[(image == i) & (truth != c)]
        choices = [*rng.permutation(beside)[:1], *like[c], c, c, c][:3]
        if classes > MANY and rng.random() < 0.01:
            choices[2] = rng.integers(classes)
        wrong.append(choices)
    wrong = np.array(wrong)
    wrong = np.where(wrong == truth[:, None], (truth[:, None] + 1) % classes, wrong)
    return wrong, rng.dirichlet((3, 1.5, 0.7), len(truth))


def confusions_near(world: World, target: float, noise: np.ndarray) -> list[np.ndarray]:
    """Return each image's sparse confusion matrix (3, n), whose mIoU comes near a target in percent.

    Args:
        world: the truth.
        target: mIoU.
        noise: what a row adds to the ease of each class of each image, (n, ).
    """
    low, high, best = -12.0, 12.0, (np.inf, None)
    for _ in range(STEPS):
        level = (low + high) / 2
        parts = _parts(world, level + noise)
        miou = _miou(world, parts)
        best = min(best, (abs(miou - target), parts), key=lambda pair: pair[0])
        low, high = (level, high) if miou < target else (low, level)
    return _by_image(world, best[1])


def _parts(world, ease):
    """Return the pixels of each class of each image by predicted class, (n, 4): right, and the three wrong classes."""
    right = np.floor(world.pixels / (1 + np.exp(-world.ease - ease))).astype(np.int64)
    missed = world.pixels - right
    first, second = (np.floor(missed * world.shares[:, i]).astype(np.int64) for i in (0, 1))
    return np.stack([right, first, second, missed - first - second], 1)


def _miou(world, parts):
    """Return the mIoU of the pixels of `_parts`, as `fsa_seg.evaluation.metric.metrics` computes the mIoU."""
    predicted = np.column_stack([world.truth, world.wrong])
    label = np.bincount(world.truth, parts.sum(1), world.classes)
    seen = np.bincount(predicted.ravel(), parts.ravel(), world.classes)
    right = np.bincount(world.truth, parts[:, 0], world.classes)
    union = label + seen - right
    return 100 * (right[union > 0] / union[union > 0]).mean()


def _by_image(world, parts):
    """Return the pixels of `_parts` as a sparse confusion matrix for each image."""
    predicted = np.column_stack([world.truth, world.wrong])
    pairs = (world.image[:, None] * world.classes + world.truth[:, None]) * world.classes + predicted
    keys, places = np.unique(pairs[parts > 0], return_inverse=True)
    pixels = np.bincount(places, parts[parts > 0]).astype(np.int64)
    image, pair = np.divmod(keys, world.classes**2)
    rows = np.stack([*np.divmod(pair, world.classes), pixels])
    return np.split(rows, np.searchsorted(image, np.arange(1, world.images)), axis=1)


def _composed(cells, options, words, class_names, folder) -> Iterator[Config]:
    """Yield the configs of cells, each once more for each name of words; `folder` gets the files of words."""
    for parts, name in itertools.product(cells, (None, *words)):
        config = compose(**parts, **options)
        if name is not None:
            path = os.path.join(folder, f'{name}.txt')
            with open(path, 'w', encoding='utf-8') as f:
                f.writelines(f'{";".join(queries)};{name} {i}\n' for i, queries in enumerate(config.model.words))
            config = compose(**parts, **options, words=path)
        if class_names:
            dataset = config.test_dataloader.dataset
            names = [*class_names, *names_of(dataset)[len(class_names) :]][: len(names_of(dataset))]
            dataset.metainfo = dict(classes=names)
        yield config


def _prepared(config, images):
    """Return the `Cell` of a composed config; split and contents of the images are made up."""
    dataset, name = config.test_dataloader.dataset, config.cell.dataset
    split = SPLITS.get(name, name)
    numbers = _rng(images, 'split', split).choice(10**6, images, replace=False)
    names = sorted(f'{dataset.data_prefix.img_path}/made_up_{number:06d}.jpg' for number in numbers)
    contents = {image: hashlib.sha256(f'{MADE} {name} {image}'.encode()).hexdigest() for image in names}
    if config.cell.limit:
        dataset.indices = list(range(images))
    data = Data(names, contents)
    entries = [Entry('device', MADE, e.level) if e.key == 'device' else e for e in fingerprint(config, data)]
    return Cell(config, entries, data)


def _with_settings(cells, settings) -> Iterator[Cell]:
    """Yield cells, then the cells of FSA once more for each of FSA's settings.

    A cell of other settings is a copy whose names, config and fingerprint are edited: composing each takes longer.
    """
    bases = []
    for cell in cells:
        yield cell
        bases += [cell] if cell.config.cell.feedback == 'fsa' else []
    for values in settings:
        for cell in bases:
            title = ' '.join(f'{key}={value}' for key, value in values.items())
            config = Config(copy.deepcopy(cell.config._cfg_dict), format_python_code=False)
            config.cell.feedback = f'fsa {title}'
            config.model.feedback.update(values)
            new = {f'model.feedback.{key}': canonical(value) for key, value in values.items()}
            entries = [Entry(e.key, new.get(e.key, e.value), e.level) for e in cell.fingerprint]
            yield Cell(config, entries, cell.data)


def _write(path, cell, target, seed, written):
    """Write the result of a cell whose mIoU comes near a target.

    Args:
        written (dict): hash -> path of a result; gets this one. Cells of one hash have one number.
    """
    about, digest = dict(cell.config.cell), cell.hash
    if digest in written:
        with open(written[digest], encoding='utf-8') as f:
            result = dict(json.load(f), cell=about, config=to_json(cell.config))
    else:
        result = _result(cell, target, seed)
    write_result(result, path)
    written[digest] = path


def _result(cell, target, seed):
    """Return the result of a cell whose mIoU comes near a target."""
    about, classes = cell.config.cell, names_of(cell.config.test_dataloader.dataset)
    world = make_world(about.dataset, len(classes), len(cell.data.names), seed)
    row = [about[name] for name in ('method', 'backbone', 'vfm')]
    noise = np.zeros(len(world.truth))
    for source, spread in ((row, 0.35), ([*row, *(about[name] for name in ('feedback', 'protocol', 'words'))], 0.25)):
        rng = _rng(seed, 'row', SIBLINGS.get(about.dataset, about.dataset), source)
        noise += rng.normal(0, spread, world.classes)[world.truth] + rng.normal(0, spread, len(noise))
    metric = SimpleNamespace(images=cell.data.names, confusions=confusions_near(world, target, noise), done={})
    weights = dict.fromkeys(('backbone', *(f'vfm.{role}' for role in cell.config.model.vfm or ())), MADE)
    seconds = round(len(cell.data.names) * float(_rng(seed, 'seconds', row).uniform(0.1, 0.6)), 3)
    return dict(make_result(cell, metric, classes, weights, MADE, seconds), cells_in_pass=1, window_batch=1)


def check_made(result: Mapping) -> None:
    """Raise an AssertionError unless a made result's figures follow from its images' counts.

    Args:
        result: of `fsa_seg.evaluation.results.read_result`.
    """
    count = len(result['classes'])
    sums = np.zeros((3, count), np.int64)
    for image in result['images']:
        for row, key in zip(sums, ('intersection', 'union', 'label')):
            np.add.at(row, image['classes'], image[key])
    matrix = [np.array([result['confusion'][key] for key in ('truth', 'predicted', 'pixels')])]
    figures = metrics(sum_confusions(matrix, count))
    present = sums[1] > 0
    assert abs(figures['mIoU'] - 100 * (sums[0][present] / sums[1][present]).mean()) < 1e-9
    assert figures['mIoU'] == result['metrics']['mIoU'] and result['device'] == MADE


def all_settings() -> list[dict]:
    """Return combinations of FSA's settings, without the published ones."""
    return [dict(zip(SETTINGS, values)) for values in itertools.product(*SETTINGS.values())]


def _rng(seed, *names):
    """Return a generator that depends on a seed and on names alone."""
    return np.random.default_rng([seed, zlib.crc32(json.dumps(names, sort_keys=True).encode())])


def main() -> None:
    """Make results from the command line, see the module's docstring."""
    parser = argparse.ArgumentParser(description='Write made-up results: no number is measured.')
    parser.add_argument('folder', help='gets the result files')
    parser.add_argument('--suite', default='paper')
    parser.add_argument('--images', type=int, default=40, help='images of each data set')
    parser.add_argument('--cells', type=int, help='number of results; more than the suite has: other settings of FSA')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    start = time.perf_counter()
    settings = all_settings() if args.cells else ()
    paths = make_results(args.folder, args.suite, args.images, args.seed, settings=settings, most=args.cells)
    print(f'{len(paths)} made-up results in {args.folder}, {time.perf_counter() - start:.1f} s')


if __name__ == '__main__':
    main()
