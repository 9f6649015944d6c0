"""What is kept of a segmented picture: labels as PNG, scores as NPZ, and the command line that gives both again."""

import os
import shlex
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from fsa_seg.errors import UserError
from fsa_seg.evaluation.label_files import label_picture
from fsa_seg.system.paths import check_file
from fsa_seg.visualization.colors import class_colors

ENDINGS = dict(labels='.png', scores='.npz')


def labels_png(labels: np.ndarray, count: int) -> Image.Image:
    """Return labels as a PIL image whose values are the classes from 0, to be saved as PNG.

    Up to 256 classes the image has 8 bits, and a palette of the classes' colours; of more classes it has 16 bits.

    Args:
        labels: (height, width), whole numbers.
        count: number of classes.
    """
    return label_picture(labels, count - 1, class_colors(count) if count <= 256 else None)


def write_scores(file: BinaryIO, scores: np.ndarray, classes: Sequence[str]) -> None:
    """Write scores to an open file, as a compressed NPZ of `scores` and `classes`, which `numpy.load` reads.

    Args:
        file: open for binary writing.
        scores: (K, height, width) float32.
        classes: the text of each class, 'cat; kitten'.
    """
    np.savez_compressed(file, scores=scores, classes=np.array(list(classes), np.str_))


def check_outputs(image: str, **paths: str | None) -> None:
    """Raise a UserError unless each file can be written, ends as its kind has to, and no two paths are one file.

    Args:
        image: the path of the picture that is segmented, which no output may replace.
        paths: option without dashes -> path; None for no such file.
    """
    taken = {os.path.realpath(image): 'the picture'}
    for name, path in paths.items():
        if path is None:
            continue
        check_file(path, f'--{name}')
        if name in ENDINGS and not path.lower().endswith(ENDINGS[name]):
            raise UserError(f'--{name} {path}: the name has to end in {ENDINGS[name]}')
        other = taken.setdefault(os.path.realpath(path), f'--{name}')
        if other != f'--{name}':
            raise UserError(f'--{name} {path} is the file of {other}; name another')


def command_line(
    picture: str,
    classes: Sequence[str],
    method: str = 'proxyclip',
    feedback: bool | str | dict | None = 'fsa',
    backbone: str = 'clip_vit-b16',
    vfm: str | None = None,
    protocol: str = 'own',
    precision: str = 'auto',
    prob_thd: float = 0.0,
    random_weights: int | None = None,
    image_max: int | None = None,
    labels: str | None = 'labels.png',
    scores: str | None = None,
) -> str:
    """Return the line for a POSIX shell that segments a picture, as `Segmenter` of these arguments does.

    The line names what differs from the command's defaults. Any text is quoted as the shell needs it.

    Args:
        picture: path of the picture.
        classes, prob_thd, image_max: as of `fsa_seg.apps.segmenter.Segmenter.segment`.
        method, feedback, backbone, vfm, protocol, precision, random_weights: as of `Segmenter`; a dict of feedback
            holds settings of FSA.
        labels, scores: files that the command writes, see `labels_png` and `write_scores`; None for no such file.
    """
    options = [
        *_option('--method', method, 'proxyclip'),
        *_feedback_options(feedback),
        *_option('--backbone', backbone, 'clip_vit-b16'),
        *_option('--vfm', vfm, None),
        *_option('--protocol', protocol, 'own'),
        *_option('--precision', precision, 'auto'),
        *_option('--prob-thd', prob_thd, 0),
        *_option('--random-weights', random_weights, None),
        *_option('--image-max', image_max, None),
        *_option('--labels', labels, None),
        *_option('--scores', scores, None),
    ]
    words = [picture, *('--;' if text == '--' else text for text in classes)]  # the same word, not argparse's mark
    if any(word.startswith('-') for word in words):
        return shlex.join(['fsa-seg', 'segment', *options, '--', *words])
    return shlex.join(['fsa-seg', 'segment', *words, *options])


def _option(name: str, value: Any, default: Any) -> list[str]:
    """Return an option of the command line; nothing for the default. A value that begins with '-' is tied to it."""
    if value == default:
        return []
    return [f'{name}={value}'] if str(value).startswith('-') else [name, str(value)]


def _feedback_options(feedback: bool | str | dict | None) -> list[str]:
    """Return the options of a feedback: its name, or settings of FSA."""
    if feedback in (None, False, 'none'):
        return ['--no-fsa']
    if not isinstance(feedback, dict):
        return _option('--feedback', 'fsa' if feedback is True else feedback, 'fsa')
    pairs = [f'{key}={_value(value)}' for key, value in feedback.items()]
    return ['--fsa-options', *pairs] if pairs else []


def _value(value: Any) -> str:
    """Return the text that `--fsa-options` reads as this value: ['WA', 'W'] -> '[WA,W]'."""
    return f'[{",".join(map(str, value))}]' if isinstance(value, (list, tuple)) else str(value)
