"""Files of predicted labels: one PNG for each image, with the labels of the data set's label files."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from mmengine.dist import is_main_process
from PIL import Image

from fsa_seg.errors import UserError
from fsa_seg.system.paths import file_digest, files_digest, make_folder, new_file
from fsa_seg.visualization.pictures import picture_path

MARK = '.result'  # file in a folder of labels: the path of the result that the labels belong to, from the folder


def label_picture(labels: np.ndarray, highest: int, colors: Sequence[Sequence[int]] | None = None) -> Image.Image:
    """Return labels as a PIL image of 8 bits where all labels of the data set fit, else of 16 bits.

    Args:
        labels: (height, width), whole numbers.
        highest: the highest label of the data set.
        colors: RGB colour of each label; an image of 8 bits then has these colours, and its indices are the labels.
    """
    if highest > 255:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8))
    if colors:
        picture.putpalette([int(value) for color in colors for value in color])
    return picture


def write_labels(path: str, labels: np.ndarray, meta: dict, reduce_zero_label: bool = False) -> str:
    """Write predicted labels as a PNG, which appears when it is complete, and return the file's digest.

    Args:
        path: the file.
        labels: (height, width), the classes from 0.
        meta: `classes`, and the `palette` if there is one.
        reduce_zero_label: label 0 of the data set's files is void, so that the first class is written as 1.
    """
    shift, palette = int(reduce_zero_label), meta.get('palette')
    colors = [*[(0, 0, 0)] * shift, *palette] if palette else None
    with new_file(path) as part:
        label_picture(labels + shift, len(meta['classes']) - 1 + shift, colors).save(part, 'PNG')
    return file_digest(path)


def labels_folder(work_dir: str, result: str) -> str:
    """Return the folder of the labels that go with the file of a result: WORK_DIR/labels/<its name without suffix>."""
    return os.path.join(work_dir, 'labels', os.path.splitext(os.path.basename(result))[0])


def label_path(folder: str, name: str) -> str:
    """Return the path of an image's labels; the name is the image's path below the data root."""
    return picture_path(folder, name, None)


def labels_digest(folder: str, names: Iterable[str]) -> str:
    """Return the digest of the files of predicted labels of images, in order."""
    return files_digest(label_path(folder, name) for name in names)


def claim_folder(folder: str, result: str, names: Iterable[str]) -> None:
    """Make the folder of the labels of a result, and mark the folder as this result's.

    Args:
        folder: see `labels_folder`.
        result: the result's file.
        names: of the images.

    Raises:
        UserError: the folder belongs to another result, cannot be written to, or two images would share a file.
    """
    names = list(names)
    path, count = Counter(label_path(folder, name) for name in names).most_common(1)[0]
    if count > 1:
        both = [name for name in names if label_path(folder, name) == path]
        raise UserError(f'{path} would hold the labels of two images, {both[0]} and {both[1]}; rename one')
    make_folder(folder)
    mark, own = os.path.join(folder, MARK), os.path.relpath(result, folder)
    if is_main_process():
        with contextlib.suppress(FileExistsError), open(mark, 'x', encoding='utf-8') as f:  # of two processes, one
            f.write(own)
    if os.path.exists(mark):
        with open(mark, encoding='utf-8') as f:
            other = f.read()
        if other not in (own, ''):
            raise UserError(
                f'--save-labels: {folder} holds the labels of {os.path.normpath(os.path.join(folder, other))}; name '
                'another --work-dir, give --out a name that no other result has, or remove the folder'
            )


def missing_labels(result: dict, path: str) -> str | None:
    """Return why a result's labels cannot be used, or None where the labels of all its images are there.

    Args:
        result: see `fsa_seg.evaluation.results.read_result`.
        path: the result's file.
    """
    if not result.get('labels'):
        return 'its predicted labels were not written'
    folder = os.path.normpath(os.path.join(os.path.dirname(path), result['labels']))
    names = [image['name'] for image in result['images']]
    missing = [name for name in names if not os.path.isfile(label_path(folder, name))]
    if missing:
        return f'{len(missing)} of {len(names)} files of predicted labels are missing in {folder}'
    if result.get('labels_digest') != labels_digest(folder, names):
        return f'files of predicted labels in {folder} have changed'
    return None
