"""Read, renumber and check label images.

A label image holds void (see `void_label`) and the labels of K classes: 0 to K − 1, or 0 to K if 0 becomes void. A
label map renumbers label images with other numbers: ids with gaps, masks of 0 and 255, colours.
"""

import os
import re

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from fsa_seg.datasets.images import open_image
from fsa_seg.errors import UserError, one_line
from fsa_seg.system.files import check_memory, read_file

VOID, WIDE_VOID = 255, 65535
MOST_ID = (1 << 24) - 1  # of a label map: the greatest colour
NO_LABELS = 'no pixel of the label images is of any class'


@TRANSFORMS.register_module()
class LoadLabels(BaseTransform):
    """Loads a label image of any bit depth as `gt_seg_map`, (height, width) int32 at original size.

    Takes the place of mmseg's `LoadAnnotations`, which casts to uint8. `reduce_zero_label` makes label 0 void and
    shifts the other labels down by one. The data set's own `label_map` renumbers.

    Args:
        void (int): label of pixels that do not count.
        label_map (list): pairs [number in the file, label], applied first; see `read_label_map`.

    Raises (while loading):
        UserError: the file cannot be decoded, has colour channels and no label map, or another size than its image.
    """

    def __init__(self, void: int = VOID, label_map: list | None = None):
        self.void, self.label_map = void, label_map

    def transform(self, results: dict) -> dict:
        """Add `gt_seg_map` to the results; an image without labels, as mmseg's inferencers give it, has none."""
        if results.get('seg_map_path') is None:
            return results
        labels = read_labels(results['seg_map_path'], self.label_map)
        check_sizes(results['seg_map_path'], labels.shape, results['img_path'], results['ori_shape'])
        if results['reduce_zero_label']:
            labels = without_zero(labels, self.void)
        if results.get('label_map'):
            before = labels.copy()
            for old, new in results['label_map'].items():
                labels[before == old] = new
        results['gt_seg_map'] = labels
        results['seg_fields'].append('gt_seg_map')
        return results


def void_label(classes: int, reduce_zero_label: bool = False) -> int:
    """Return the label of pixels that do not count: 255, or 65535 if 255 is a class in the files."""
    return WIDE_VOID if classes + reduce_zero_label > VOID else VOID


def without_zero(labels: np.ndarray, void: int) -> np.ndarray:
    """Return the labels with 0 as void and the other labels shifted down by one."""
    return np.where((labels == 0) | (labels == void), void, labels - 1)


def read_labels(path: str, label_map: list | None = None) -> np.ndarray:
    """Return a label image file as (height, width) int32, see `decode_labels`; another file is a UserError."""
    return decode_labels(read_file(path, 'the label image'), path, label_map)


def decode_labels(data: bytes, path: str, label_map: list | None = None) -> np.ndarray:
    """Return a label image as (height, width) int32.

    Args:
        data: content of a file that Pillow decodes; the values of a palette image are its indices.
        path: the file's name for errors.
        label_map: pairs [number in the file, label]; the other numbers stay. With a label map, a colour image holds the
            numbers R + 256·G + 65536·B.

    Raises:
        UserError: the data cannot be decoded, or a value after the label map is no whole number from 0 to 65535.
    """
    what = f'the label image {path}'
    with open_image(data, what) as image:
        check_memory(12 * image.width * image.height, f'{what} of {image.height}×{image.width} pixels')
        try:
            labels = np.array(image)
        except Exception as error:  # the decoders raise many kinds
            raise UserError(f'{what} cannot be decoded: {one_line(error)}') from None
    if labels.ndim == 3 and labels.shape[2] == 3 and label_map:
        labels = labels.astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)
    if labels.ndim != 2:
        raise UserError(
            f'{what} has {labels.shape[2]} channels; a palette or a single-channel image is needed, whose '
            'values are the labels. Colours (R + 256·G + 65536·B) need --label-map (in a config, '
            'label_map)'
        )
    if label_map and labels.dtype.kind in 'uib':
        labels = _renumbered(labels.astype(np.int64), label_map)
    wide = labels.dtype.itemsize > 2 and labels.size
    if labels.dtype.kind not in 'uib' or wide and (labels.min() < 0 or labels.max() > WIDE_VOID):
        raise UserError(
            f'{what} has values of type {labels.dtype} ({labels.min()} to {labels.max()}), beyond the '
            f'whole numbers 0 to {WIDE_VOID}; --label-map (in a config, label_map) renumbers greater ones'
        )
    return labels.astype(np.int32)


def _renumbered(labels, label_map):
    """Return the labels after a label map."""
    old, new = np.array(sorted(label_map), np.int64).T
    positions = np.minimum(np.searchsorted(old, labels), len(old) - 1)
    return np.where(old[positions] == labels, new[positions], labels)


def read_label_map(source: str | dict | list, folder: str = '') -> list[list[int]]:
    """Return a label map as sorted pairs [number in the file, label].

    Args:
        source: 'OLD:NEW,OLD:NEW'; or a text file's name; or dict(OLD=NEW) with whole numbers; or pairs. The text file
            has a line 'OLD NEW' for each number; # starts a comment.
        folder: base of a relative file name.

    Raises:
        UserError: an unreadable file, a line or pair of another form, or a number with two labels.
    """
    if isinstance(source, str) and re.fullmatch(r'\s*\d+:\d+\s*(,\s*\d+:\d+\s*)*', source):
        return _checked_pairs([pair.split(':') for pair in source.split(',')], f'the label map {source!r}')
    if isinstance(source, str):
        path = os.path.join(folder, source)
        return _checked_pairs(_read_pairs(path), f'the label map {path!r}')
    return _checked_pairs(list(source.items()) if isinstance(source, dict) else source, 'the label map')


def _read_pairs(path):
    """Return the words of each line of a label map's file; empty lines and comments are dropped."""
    where = f'the label map {path!r}'
    if not os.path.exists(path):
        raise UserError(
            f'{where} does not exist; give a text file with a line "OLD NEW" each, or numbers such as 255:1,7:0'
        )
    try:
        lines = read_file(path, 'the label map').decode('utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f'{where} is no UTF-8 text: {error}') from None
    return [line.split() for line in (line.split('#')[0].strip() for line in lines) if line]


def _checked_pairs(pairs, where):
    """Return the pairs of a label map as sorted lists of two whole numbers."""
    label_of = {}
    for pair in pairs if isinstance(pairs, (list, tuple)) else [pairs]:
        numbers = (
            [int(text) if isinstance(text, str) and text.strip().isdecimal() else text for text in pair]
            if isinstance(pair, (list, tuple))
            else [pair]
        )
        if len(numbers) != 2 or any(type(number) is not int or number < 0 for number in numbers):
            raise UserError(
                f'{where} has the entry {pair!r}; an entry is two whole numbers, the number in the file and its label'
            )
        old, new = numbers
        if old > MOST_ID or new > WIDE_VOID:
            raise UserError(
                f'{where} has the entry {pair!r}; numbers in a file go up to {MOST_ID}, labels to {WIDE_VOID}'
            )
        if label_of.setdefault(old, new) != new:
            raise UserError(f'{where} gives {old} two labels, {label_of[old]} and {new}')
    if not label_of:
        raise UserError(f'{where} is empty')
    return sorted([old, new] for old, new in label_of.items())


def check_rule(classes: int, reduce_zero_label: bool, void: int, label_map: list | None = None) -> None:
    """Raise a UserError unless void and the labels of a label map fit the number of classes."""
    if type(void) is not int or not 0 <= void <= WIDE_VOID:
        raise UserError(f'ignore_index is {void!r}; it has to be a whole number from 0 to {WIDE_VOID}')
    if reduce_zero_label and void < classes:
        raise UserError(
            f'ignore_index is {void}, which is a class once reduce_zero_label has shifted the labels: give another'
        )
    values = classes + reduce_zero_label
    for old, new in label_map or ():
        if new >= values and new != void:
            raise UserError(
                f'the label map gives {old} the label {new}; the data set has 0 to {values - 1}, and {void} for void'
            )


def check_range(path: str, present: np.ndarray, values: int, void: int = VOID) -> None:
    """Raise a UserError if a label image holds labels (`present`) neither below `values` nor void."""
    wrong = present[(present >= values) & (present != void)]
    if len(wrong):
        raise UserError(
            f'the label image {path} has the labels {wrong[:5].tolist()}; the data set has 0 to '
            f'{values - 1}, and {void} for void (--ignore-index says another, --label-map renumbers; in a '
            'config, ignore_index and label_map)'
        )


def check_seen(labels: set[int], classes: int, reduce_zero_label: bool, void: int, void_named: bool) -> str | None:
    """Return a warning about unusual labels of a data set, or None; raise a UserError for impossible labels.

    Args:
        labels: the labels of all files, after the label map.
        classes: number of classes.
        reduce_zero_label: label 0 is void, and the other labels shift down by one.
        void: label of pixels that do not count.
        void_named: the user named `void`. Else both of two classes must occur beside void: a mask of 0 and 255 would
            pass for a class and void.
    """
    values = classes + reduce_zero_label
    present = [label for label in sorted(labels) if reduce_zero_label <= label < values and label != void]
    if not present:
        raise UserError(
            f'{NO_LABELS}: labels are {int(reduce_zero_label)} to {values - 1}, and they hold '
            f'{sorted(labels)[:5]} (void is {void}{" and 0" if reduce_zero_label else ""}); --label-map '
            'renumbers them (in a config, label_map)'
        )
    if len(present) > 1 or classes == 1 or void not in labels or void_named:
        return None
    warning = f'the label images hold {present[0]} and {void} alone, and {void} is void: one class of {classes} occurs'
    if classes > 2:
        return warning
    absent = 2 * reduce_zero_label + 1 - present[0]
    raise UserError(
        f'{warning}. If {void} is the other class, say --label-map {void}:{absent} (in a config, label_map); '
        f'if it is void, --ignore-index {void} (ignore_index)'
    )


def check_sizes(label_path: str, label_size: tuple, image_path: str, image_size: tuple) -> None:
    """Raise a UserError unless label image and image have the same height and width."""
    if tuple(label_size) != tuple(image_size):
        height, width = label_size
        raise UserError(
            f'the label image {label_path} has {height}×{width} pixels, its image {image_path} '
            f'{image_size[0]}×{image_size[1]}'
        )
