"""Single images of results: image, truth, and the labels of a row, checked against what the result counted.

A result of `--save-labels` names its folder of label images. The image and its truth come from the data set's folder.
Label maps are (height, width).
"""

import base64
import contextlib
import copy
import functools
import io
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmengine import Config
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from fsa_seg.config.components import component_names, load_component
from fsa_seg.config.saved import from_json
from fsa_seg.datasets.data_sets import list_images, read_as_loaded
from fsa_seg.datasets.label_images import VOID, WIDE_VOID, read_labels
from fsa_seg.errors import UserError, one_of
from fsa_seg.evaluation.label_files import label_path
from fsa_seg.evaluation.report.collect import Light, heavy
from fsa_seg.evaluation.report.rows import Pair
from fsa_seg.evaluation.report.statistics import image_of
from fsa_seg.evaluation.results import row_name
from fsa_seg.system.paths import file_state, find_root
from fsa_seg.visualization.pictures import picture_grid

LONGEST = 320  # pixels of a tile's longer side
HOW = 'run both rows with --save-labels, and draw the report again'


class Scene(NamedTuple):
    """An image of a result's data set, and its truth.

    Attributes:
        name: of the image, as in the results.
        image: (height, width, 3) uint8 RGB, as the data set loads it.
        truth: int32; pixels that do not count have WIDE_VOID.
        item: what the data set's pipeline gives, `inputs` and `data_samples`.
        dataset: the data set.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    item: dict[str, Any]
    dataset: BaseSegDataset


def draw(pair: Pair, name: str, data_root: str | None = None) -> str:
    """Return the picture of an image under both rows of a pair, as the address of an HTML image.

    Args:
        pair: whose results have saved labels.
        name: of the image, as in the results.
        data_root: folder of all data sets; by default the folder that the results name.

    Raises:
        UserError: labels, image or truth are not there, or are not those that the results counted.
    """
    results = [cell.result for cell in (pair.before, pair.after)]
    with _advised():
        for result in results:
            _label_folder(result)
    scene = find_scene(results[1]['path'], name, data_root)
    maps = {'truth': scene.truth}
    with _advised():
        for result in results:
            check_truth(result, scene)
            maps[row_name(result['cell'])] = saved_labels(result, scene)
    image, maps = _scaled(scene.image, maps)
    meta = scene.dataset.metainfo
    return _address(picture_grid(image, maps, meta['classes'], meta['palette'], 2))


@contextlib.contextmanager
def _advised() -> Iterator[None]:
    """Add to an error in the block what to do for a picture in the report."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{error}: {HOW}') from None


def saved_config(path: str) -> Config:
    """Return the composed config in a result file; a config that would run code is a UserError."""
    return from_json(copy.deepcopy(heavy(path).config), path)


def find_scene(path: str, name: str, data_root: str | None = None) -> Scene:
    """Return an image of a result's data set.

    Args:
        path: the result's file.
        name: of the image.
        data_root: folder of all data sets; by default the folder that the result names.

    Raises:
        UserError: the data set, the image or its truth is not there.
    """
    dataset, places, void = _dataset(path, file_state(path), data_root)
    if name not in places:
        raise UserError(f'{name} is not in {dataset.data_root}; name the folder of all data sets by --data-root')
    item = dataset[places[name]]
    sample = item['data_samples']
    truth = sample.gt_sem_seg.data[0].numpy().astype(np.int32)
    truth[truth == void] = WIDE_VOID
    return Scene(name, read_as_loaded(dataset, sample.img_path), truth, item, dataset)


@functools.lru_cache(4)
def _dataset(path, state, data_root):
    """Return the data set of a result, name -> position of its images, and the label of pixels that do not count."""
    config = saved_config(path)
    settings = config.test_dataloader.dataset
    if data_root is not None:
        name = one_of(config.cell.dataset, component_names('dataset'), 'data set')  # a path would be a program
        settings.data_root = os.path.join(data_root, load_component('dataset', name)['data_root'])
    settings.data_root = find_root(settings.data_root)
    settings.pop('indices', None)
    places = {entry['name']: i for i, entry in enumerate(list_images(settings))}
    return DATASETS.build(settings), places, config.test_evaluator.get('ignore_index', VOID)


def saved_labels(result: Light, scene: Scene) -> np.ndarray:
    """Return the labels of an image that a result's run has saved: int32, the classes from 0.

    Raises:
        UserError: the labels are not there, or are not those that the result counted.
    """
    path = os.path.normpath(label_path(_label_folder(result), scene.name))
    try:
        labels = read_labels(path) - int(scene.dataset.reduce_zero_label)
    except UserError as error:
        raise UserError(f'the saved labels of {scene.name} cannot be read ({error})') from None
    if labels.shape != scene.truth.shape:
        raise UserError(f'the saved labels of {scene.name} have another size than the truth')
    if labels.min() < 0 or labels.max() >= len(result['classes']) or miscounted(result, scene, labels):
        raise UserError(f'the saved labels of {scene.name} are not what the result counted')
    return labels


def _label_folder(result):
    """Return the folder of a result's saved labels."""
    if not result['label_folder']:
        raise UserError(f'{row_name(result["cell"])} has no saved labels')
    return result['label_folder']


def check_truth(result: Light, scene: Scene) -> None:
    """Raise a UserError unless the truth of an image has as many pixels of each class as a result counted."""
    counted = image_of(heavy(result['path']).counts, scene.name).label[0]
    if not np.array_equal(_pixels(scene.truth, len(counted)), counted):
        raise UserError(f'the truth of {scene.name} is not what the result counted')


def miscounted(result: Light, scene: Scene, labels: np.ndarray) -> int:
    """Return how many pixels of a label map differ from the labels that a result counted, at least.

    The result knows the pixels of each class, and how many of them are right. A pixel that differs moves from one class
    to another, and changes at most one number of right pixels.
    """
    (intersection,), (union,), (label,) = image_of(heavy(result['path']).counts, scene.name)[1:]
    size = len(label)
    counting, right = (np.where(where, labels, -1) for where in (scene.truth < size, scene.truth == labels))
    moved = _pixels(counting, size) - (union + intersection - label)
    return int(max(moved.clip(0).sum(), -moved.clip(None, 0).sum(), abs(_pixels(right, size) - intersection).sum()))


def _pixels(labels, size):
    """Return how many pixels of a label map have each label below `size`."""
    return np.bincount(labels[(labels >= 0) & (labels < size)].ravel(), minlength=size)


def _scaled(image, maps):
    """Return an image and its label maps, made smaller where their longer side exceeds LONGEST."""
    height, width = image.shape[:2]
    scale = LONGEST / max(height, width)
    if scale >= 1:
        return image, maps
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    maps = {
        title: cv2.resize(labels.astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
        for title, labels in maps.items()
    }
    return image, maps


def _address(picture):
    """Return a picture as the address of an HTML image, which holds the picture itself."""
    out = io.BytesIO()
    picture.save(out, 'WEBP', quality=80)
    return 'data:image/webp;base64,' + base64.b64encode(out.getvalue()).decode()
