"""Pictures of single images of a pair: image, truth, and the labels of both rows, from files of saved labels.

A result of `--save-labels` names its folder of label images. The image and its truth come from the data set's folder.
"""

import base64
import copy
import functools
import io
import os

import cv2
import numpy as np
from mmseg.registry import DATASETS
from PIL import Image

from fsa_seg.config.components import component_names, load_component
from fsa_seg.config.saved import from_json
from fsa_seg.datasets.data_sets import list_images, read_as_loaded
from fsa_seg.errors import UserError, one_line, one_of
from fsa_seg.evaluation.label_files import label_path
from fsa_seg.evaluation.report.collect import heavy
from fsa_seg.evaluation.report.rows import Pair
from fsa_seg.evaluation.results import row_name
from fsa_seg.system.paths import find_root
from fsa_seg.visualization.pictures import picture_grid

LONGEST = 320  # pixels of a tile's longer side
HOW = 'run both rows with --save-labels, and draw the report again'


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
    for result in results:
        if not result['label_folder']:
            raise UserError(f'{row_name(result["cell"])} has no saved labels: {HOW}')
    dataset, places = _dataset(results[1]['path'], data_root)
    if name not in places:
        raise UserError(f'{name} is not in {dataset.data_root}; name the folder of all data sets by --data-root')
    sample = dataset[places[name]]['data_samples']
    truth = sample.gt_sem_seg.data[0].numpy()
    counts = [heavy(result['path']).counts for result in results]
    row = counts[0].images.index(name)
    _check(truth, counts[0].label[row], f'the truth of {name}')
    maps = {'truth': truth}
    for result, part in zip(results, counts):
        labels = _labels(result, name, dataset.reduce_zero_label)
        if labels.shape != truth.shape:
            raise UserError(f'the saved labels of {name} have another size than the truth: {HOW}')
        predicted = (part.union + part.intersection - part.label)[row]
        _check(np.where(truth < len(predicted), labels, -1), predicted, f'the saved labels of {name}')
        maps[row_name(result['cell'])] = labels
    image = read_as_loaded(dataset, sample.img_path)
    image, maps = _scaled(image, maps)
    meta = dataset.metainfo
    return _address(picture_grid(image, maps, meta['classes'], meta['palette'], 2))


@functools.lru_cache(4)
def _dataset(path, data_root):
    """Return the data set of a result, and name -> position of its images."""
    config = from_json(copy.deepcopy(heavy(path).config), path)
    settings = config.test_dataloader.dataset
    if data_root is not None:
        name = one_of(config.cell.dataset, component_names('dataset'), 'data set')  # a path would be a program
        settings.data_root = os.path.join(data_root, load_component('dataset', name)['data_root'])
    settings.data_root = find_root(settings.data_root)
    settings.pop('indices', None)
    places = {entry['name']: i for i, entry in enumerate(list_images(settings))}
    return DATASETS.build(settings), places


def _labels(result, name, reduce_zero_label):
    """Return an image's saved labels (height, width), from 0."""
    path = label_path(result['label_folder'], name)
    try:
        with Image.open(path) as file:
            return np.array(file).astype(np.int64) - bool(reduce_zero_label)
    except (OSError, ValueError) as error:
        raise UserError(f'the saved labels {path} cannot be read ({one_line(error)}): {HOW}') from None


def _check(labels, pixels, subject):
    """Raise a UserError unless a label map has as many pixels of each class as the result counted."""
    counts = np.bincount(labels[(labels >= 0) & (labels < len(pixels))].ravel(), minlength=len(pixels))
    if not np.array_equal(counts, pixels):
        raise UserError(f'{subject} are not what the result counted: {HOW}')


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
