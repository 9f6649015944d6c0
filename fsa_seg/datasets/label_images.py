"""Label images: reading, renumbering and checking them.

A label image holds the labels 0 to K − 1 of K classes, or 0 to K where 0 is made void; and void, see `void_label`. One
that holds other numbers (ids with gaps, masks of 0 and 255, colours) is renumbered by a label map.
"""

import os
import re

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from fsa_seg.datasets.images import open_image
from fsa_seg.errors import UserError
from fsa_seg.system.files import check_memory, read_file

VOID, WIDE_VOID = 255, 65535
MOST_ID = (1 << 24) - 1  # of a label map: the greatest colour
NO_LABELS = 'no pixel of the label images is of any class'


@TRANSFORMS.register_module()
class LoadLabels(BaseTransform):
    """Loads a label image of any bit depth as `gt_seg_map`, (height, width) int32 at original size.

    What mmseg's `LoadAnnotations` does, which casts to uint8: `reduce_zero_label` makes label 0 void and shifts the
    others down by one, and the data set's own `label_map` renumbers.

    Args:
        void (int): label of pixels that do not count.
        label_map (list): pairs [number in the file, label], applied first; see `read_label_map`.

    Raises (while loading):
        UserError: the file cannot be decoded, has colour channels and no label map, or another size than its image.
    """

    def __init__(self, void=VOID, label_map=None):
        self.void, self.label_map = void, label_map

    def transform(self, results):
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


def void_label(classes, reduce_zero_label=False):
    """Return the label of pixels that do not count: 255, or 65535 where 255 is a class in the files."""
    return WIDE_VOID if classes + reduce_zero_label > VOID else VOID


def without_zero(labels, void):
    """Return labels whose 0 is made void and whose others are shifted down by one."""
    return np.where((labels == 0) | (labels == void), void, labels - 1)


def read_labels(path, label_map=None):
    """Return a label image as (height, width) int32, see `decode_labels`; one that is none is a UserError."""
    return decode_labels(read_file(path, 'the label image'), path, label_map)


def decode_labels(data, path, label_map=None):
    """Return the bytes of a label image as (height, width) int32.

    Args:
        data (bytes): of a file that Pillow decodes; the values of a palette image are its indices.
        path (str): its name for errors.
        label_map (list): pairs [number in the file, label]; the other numbers stay. With it, a colour image is taken
            for the numbers R + 256·G + 65536·B.

    Raises:
        UserError: not decoded, or values that are no whole numbers 0 to 65535 (after the label map).
    """
    what = f'the label image {path}'
    with open_image(data, what) as image:
        check_memory(12 * image.width * image.height, f'{what} of {image.height}×{image.width} pixels')
        try:
            labels = np.array(image)
        except Exception as error:  # the decoders raise many kinds
            raise UserError(f'{what} cannot be decoded: {error}') from None
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
    """Return labels, of which those that a label map names are replaced."""
    old, new = np.array(sorted(label_map), np.int64).T
    found = np.minimum(np.searchsorted(old, labels), len(old) - 1)
    return np.where(old[found] == labels, new[found], labels)


def read_label_map(given, folder=''):
    """Return a label map as sorted pairs [number in the file, label].

    Args:
        given (str, dict or list): 'OLD:NEW,OLD:NEW'; the name of a text file with a line 'OLD NEW' each (what follows
            a # is left out); dict(OLD=NEW) with whole numbers; or pairs.
        folder (str): where a relative name is looked up.

    Raises:
        UserError: a file that cannot be read, a line or pair of another form, or a number that stands twice.
    """
    if isinstance(given, str) and re.fullmatch(r'\s*\d+:\d+\s*(,\s*\d+:\d+\s*)*', given):
        pairs, where = [pair.split(':') for pair in given.split(',')], f'the label map {given!r}'
    elif isinstance(given, str):
        path = os.path.join(folder, given)
        where = f'the label map {path!r}'
        if not os.path.exists(path):
            raise UserError(
                f'{where} does not exist; give a text file with a line "OLD NEW" each, or numbers such as 255:1,7:0'
            )
        try:
            lines = read_file(path, 'the label map').decode('utf-8-sig').splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f'{where} is no UTF-8 text: {error}') from None
        pairs = [line.split() for line in (line.split('#')[0].strip() for line in lines) if line]
    else:
        where = 'the label map'
        pairs = list(given.items()) if isinstance(given, dict) else given
    return _checked_pairs(pairs, where)


def _checked_pairs(pairs, where):
    """Return pairs as sorted lists of two whole numbers."""
    found = {}
    for pair in pairs if isinstance(pairs, (list, tuple)) else [pairs]:
        numbers = (
            [int(text) if isinstance(text, str) and text.strip().isdecimal() else text for text in pair]
            if isinstance(pair, (list, tuple))
            else [pair]
        )
        if len(numbers) != 2 or any(type(number) is not int or number < 0 for number in numbers):
            raise UserError(
                f'{where} has the entry {pair!r}; an entry is two whole numbers, the one in the file and its label'
            )
        old, new = numbers
        if old > MOST_ID or new > WIDE_VOID:
            raise UserError(
                f'{where} has the entry {pair!r}; numbers in a file go up to {MOST_ID}, labels to {WIDE_VOID}'
            )
        if found.setdefault(old, new) != new:
            raise UserError(f'{where} gives {old} two labels, {found[old]} and {new}')
    if not found:
        raise UserError(f'{where} is empty')
    return sorted([old, new] for old, new in found.items())


def check_rule(classes, reduce_zero_label, void, label_map=None):
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


def check_range(path, present, values, void=VOID):
    """Raise a UserError if a label image holds labels (`present`, an array) neither below `values` nor void."""
    wrong = present[(present >= values) & (present != void)]
    if len(wrong):
        raise UserError(
            f'the label image {path} has the labels {wrong[:5].tolist()}; the data set has 0 to '
            f'{values - 1}, and {void} for void (--ignore-index says another, --label-map renumbers; in a '
            'config, ignore_index and label_map)'
        )


def check_seen(seen, classes, reduce_zero_label, void, void_said):
    """Raise a UserError for labels that cannot be the truth; return a warning for unusual labels, or None.

    Args:
        seen (set of int): the labels that occur, as in the files after the label map.
        classes (int): number of classes.
        reduce_zero_label (bool): whether label 0 is void, and the others shift down by one.
        void (int): label of pixels that do not count.
        void_said (bool): whether the user named `void`. If not, of two classes both have to occur beside void: a mask
            of 0 and 255 is taken for a class and void else.
    """
    values = classes + reduce_zero_label
    shown = [label for label in sorted(seen) if reduce_zero_label <= label < values and label != void]
    if not shown:
        raise UserError(
            f'{NO_LABELS}: labels are {int(reduce_zero_label)} to {values - 1}, and they hold '
            f'{sorted(seen)[:5]} (void is {void}{" and 0" if reduce_zero_label else ""}); --label-map '
            'renumbers them (in a config, label_map)'
        )
    if len(shown) > 1 or classes == 1 or void not in seen or void_said:
        return None
    said = f'the label images hold {shown[0]} and {void} alone, and {void} is void: one class of {classes} occurs'
    if classes > 2:
        return said
    other = 2 * reduce_zero_label + 1 - shown[0]
    raise UserError(
        f'{said}. If {void} is the other class, say --label-map {void}:{other} (in a config, label_map); '
        f'if it is void, --ignore-index {void} (ignore_index)'
    )


def check_sizes(label_path, label_size, image_path, image_size):
    """Raise a UserError unless labels and image have the same height and width."""
    if tuple(label_size) != tuple(image_size):
        height, width = label_size
        raise UserError(
            f'the label image {label_path} has {height}×{width} pixels, its image {image_path} '
            f'{image_size[0]}×{image_size[1]}'
        )
