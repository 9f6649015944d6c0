"""The metric: exact counts per image, from which mIoU, its parts and the confusion matrix follow.

Shape legend: K classes; a confusion matrix is (K truth, K predicted), in pixels.
"""

import contextlib
import glob
import hashlib
import json
import os
import secrets
import shutil

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.logging import print_log
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS

from fsa_seg.errors import UserError
from fsa_seg.models.shared_pass import check_finite_stages, finite_field
from fsa_seg.ops.device import count_labels, to_device, to_host


class Journal:
    """The counts of an interrupted run: files of one line an image, one for each process and run.

    A line is tied to the cell and to what the image and its label image held; a line that is torn, garbled, of another cell
    or of files that have changed since is not believed, and its image is counted anew.

    Args:
        folder (str): of the files; made with the first line.
        cell (str): hash of the cell's settings and of the code behind them.
        contents (dict): image name -> digest of what its image and label image hold now.
        weights (list): digests of the files of weights, None for a file that is not there; `self.weights` is replaced when
            the models are loaded.
    """

    def __init__(self, folder, cell, contents, weights=()):
        self.folder, self.weights, self._cell, self._contents = folder, list(weights), cell, contents
        self._path = os.path.join(folder, f'{get_rank()}_{secrets.token_hex(8)}.jsonl')

    def keep(self, name, counts):
        """Append the sparse confusion matrix of an image; a full disk is a UserError."""
        line = [name, self._contents[name], self.weights, counts.tolist()]
        try:
            os.makedirs(self.folder, exist_ok=True)
            with open(self._path, 'a', encoding='utf-8') as f:
                f.write(json.dumps([*line, self._seal(line)]) + '\n')
        except OSError as error:
            raise UserError(
                f'{self._path} cannot be written: {error.strerror}; make room, and run the same command again: it goes '
                'on with what is counted'
            ) from None

    def read(self):
        """Return what all files hold and can be believed: image name -> sparse confusion matrix."""
        found = {}
        for path in sorted(glob.glob(os.path.join(glob.escape(self.folder), '*.jsonl'))):
            with open(path, encoding='utf-8', errors='replace') as f:
                for text in f:
                    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError, OverflowError):
                        name, content, weights, counts, seal = json.loads(text)
                        if (
                            content == self._contents[name]
                            and self._same(weights)
                            and seal == self._seal([name, content, weights, counts])
                        ):
                            found[name] = np.array(counts, np.int64)
        return found

    def remove(self):
        """Remove the files: the result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _same(self, weights):
        """Return whether counts were made by the files of weights that are there, as far as that is known."""
        return len(weights) == len(self.weights) and all(
            a == b or None in (a, b) for a, b in zip(weights, self.weights)
        )

    def _seal(self, line):
        return hashlib.sha256(json.dumps([self._cell, *line]).encode()).hexdigest()[:16]


MOST_LOGGED = 200  # classes whose IoU is logged; the result has all of them


@METRICS.register_module()
class ExactIoUMetric(IoUMetric):
    """mmseg's `IoUMetric` with exact int64 counts, kept per image.

    An image that a distributed sampler repeats counts once. After `evaluate`, `images` holds the names (paths below
    `root`), sorted, and `confusions` the sparse confusion matrices in that order. `done` can hold those of images that
    an interrupted run has already evaluated, and `journal`, a `Journal`, keeps the counts of every image as they come;
    `settings` is what errors call the segmentor's.

    Args:
        ignore_index (int): label of pixels that do not count.
        root (str): the data root; images are named by their paths below it.
        field (str): of the data samples, that holds the predicted labels.

    Raises (while processing):
        UserError: a label or a prediction outside the classes, or numbers that are not finite; the file is named.
    """

    def __init__(self, ignore_index=255, prefix=None, root='', field='pred_sem_seg'):
        super().__init__(ignore_index=ignore_index, iou_metrics=['mIoU'], prefix=prefix)
        self.images, self.confusions, self.done, self.journal = [], [], {}, None
        self.root, self.field, self.settings = root, field, 'the given settings'
        self._pending = []

    def process(self, data_batch, data_samples):
        """Count; on a GPU the counts of these images are read when the next ones come, so that it is not waited for."""
        classes, before = len(self.dataset_meta['classes']), len(self._pending)
        for sample in data_samples:
            predicted, truth = sample[self.field]['data'].squeeze(0), sample['gt_sem_seg']['data'].squeeze(0)
            if 'truth' not in sample:  # copied once for all metrics of a panel
                sample['truth'] = to_device(truth, predicted.device)
            with _named(sample['seg_map_path']):
                counts = _counting(sample['truth'], predicted, classes, self.ignore_index)
            finite = sample.get(finite_field(self.field))  # another segmentor's samples have none
            self._pending.append(
                (sample['img_path'], sample['seg_map_path'], truth, counts, finite is not None and to_host(finite))
            )
        self._settle(before if predicted.is_cuda else len(self._pending))

    def _settle(self, count):
        """Keep the counts of the first so many images that wait."""
        for image, labels, truth, counts, finite in self._pending[:count]:
            if finite:
                check_finite_stages(finite(), image, self.settings)
            with _named(labels):
                counts = _sparse(truth, counts(), len(self.dataset_meta['classes']), self.ignore_index)
            name = os.path.relpath(image, self.root or '.')
            self.results.append((name, counts))
            if self.journal:
                self.journal.keep(name, counts)
        del self._pending[:count]

    def evaluate(self, size):
        """Gather all processes' counts, and those in `done`, and return the metrics; see `metrics`."""
        self._settle(len(self._pending))
        gathered = dict(self.done)
        for part in all_gather_object(self.results):
            gathered.update(part)
        self.results.clear()
        if len(gathered) < size:
            raise RuntimeError(f'{len(gathered)} images were evaluated, but the data set has {size}')
        self.images = sorted(gathered)
        self.confusions = [gathered[name] for name in self.images]
        figures = metrics(sum_confusions(self.confusions, len(self.dataset_meta['classes'])))
        if is_main_process():
            self._log(figures)
        return {'/'.join(filter(None, (self.prefix, key))): figures[key] for key in ('aAcc', 'mIoU', 'mAcc')}

    def _log(self, figures):
        rows = [
            f'{name:>20}  {iou:6.2f}' if iou == iou else f'{name:>20}       –'
            for name, iou in zip(self.dataset_meta['classes'], figures['IoU'])
        ]
        if len(rows) > MOST_LOGGED:
            rows[MOST_LOGGED:] = [f'and {len(rows) - MOST_LOGGED} more classes, which the result file has']
        print_log('per-class IoU in percent (– where absent from truth and prediction):\n' + '\n'.join(rows), 'current')


def confusion(truth, predicted, classes, ignore_index=255):
    """Return the sparse confusion matrix of one image: int64 (3, n), rows truth, predicted, pixels.

    >>> confusion(torch.tensor([[0, 1, 255]]), torch.tensor([[0, 0, 1]]), 2).tolist()
    [[0, 1], [0, 0], [1, 1]]

    Args:
        truth, predicted (height, width): integer labels.
        classes (int): K.
        ignore_index (int): truth that does not count.

    Raises:
        ValueError: sizes differ, or a label lies outside 0..K-1 and is not `ignore_index`.
    """
    return _sparse(truth, _counting(truth, predicted, classes, ignore_index)(), classes, ignore_index)


@contextlib.contextmanager
def _named(path):
    """Turn a ValueError into a UserError that names a file of labels."""
    try:
        yield
    except ValueError as error:
        raise UserError(f'{path}: {error}') from None


def _counting(truth, predicted, classes, ignore_index):
    """Start counting how many pixels have each pair of labels; return a function that waits for the counts.

    They are int64 (n, ) each: the pairs that occur, truth · (K + 1) + predicted, increasing; and their pixels. What is
    outside of 0..K-1 is counted as K, and ignored truth not at all. Either each pixel adds to a table of all pairs, or,
    where there would be more pairs than pixels, the pixels are sorted by their pair.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f'truth has {tuple(truth.shape)} pixels, the prediction {tuple(predicted.shape)}')
    size = classes + 1
    rows, columns = (
        torch.where((labels >= 0) & (labels < classes), labels.long(), classes) for labels in (truth, predicted)
    )
    pairs = torch.where(truth == ignore_index, size**2, rows * size + columns).flatten()
    if size**2 > pairs.numel():
        ordered = to_host(pairs.sort().values)
        return lambda: _runs(ordered(), size**2)
    table = to_host(count_labels(pairs, size**2 + 1)[:-1])
    return lambda: _occurring(table())


def _runs(ordered, stop):
    """Return the values of a sorted tensor that are below `stop`, each once, and how often each occurs."""
    return ordered[ordered < stop].unique_consecutive(return_counts=True)


def _occurring(table):
    """Return the indices of a table (n, ) that hold a count, and the counts."""
    pairs = table.nonzero().flatten()
    return pairs, table[pairs]


def _sparse(truth, found, classes, ignore_index):
    """Return the counts of `_counting` as a sparse confusion matrix; a label outside the classes is a ValueError."""
    pairs, pixels = (values.numpy() for values in found)
    rows, columns = np.divmod(pairs, classes + 1)
    allowed = f'but the data set has the classes 0 to {classes - 1} (and {ignore_index} for void)'
    if (rows == classes).any():
        labels = truth[truth != ignore_index]
        raise ValueError(
            f'the truth has labels {labels[(labels < 0) | (labels >= classes)].unique()[:5].tolist()}, {allowed}'
        )
    if (columns == classes).any():
        raise ValueError(f'the prediction has other labels, {allowed}')
    return np.stack([rows, columns, pixels])


def sum_confusions(confusions, classes):
    """Return the sum of sparse confusion matrices as a dense one, (K, K) int64."""
    total = np.zeros((classes, classes), np.int64)
    for truth, predicted, pixels in confusions:
        np.add.at(total, (truth, predicted), pixels)
    return total


def metrics(total):
    """Return mIoU, mAcc, aAcc (percent, unrounded) and per-class IoU and Acc (percent, NaN where undefined).

    A class that is absent from both truth and prediction is left out of mIoU; one that is absent from the truth is
    left out of mAcc.

    Args:
        total (K, K): confusion matrix.
    """
    intersect, label, predicted = np.diag(total), total.sum(1), total.sum(0)
    with np.errstate(invalid='ignore', divide='ignore'):
        iou = 100 * intersect / (label + predicted - intersect)
        acc = 100 * intersect / label
        return dict(
            mIoU=float(np.nanmean(iou)),
            mAcc=float(np.nanmean(acc)),
            aAcc=float(100 * intersect.sum() / total.sum()),
            IoU=iou.tolist(),
            Acc=acc.tolist(),
        )


def per_image_counts(confusions):
    """Return each image's counts: a list of dict(classes, intersection, union, label), over the classes it shows.

    Lists are parallel: pixels of the classes that are in the image's truth or prediction.
    """
    rows = []
    for truth, predicted, pixels in confusions:
        classes = np.union1d(truth, predicted)
        label, shown, both = np.zeros((3, len(classes)), np.int64)
        np.add.at(label, np.searchsorted(classes, truth), pixels)
        np.add.at(shown, np.searchsorted(classes, predicted), pixels)
        right = truth == predicted
        both[np.searchsorted(classes, truth[right])] = pixels[right]
        rows.append(
            dict(
                classes=classes.tolist(),
                intersection=both.tolist(),
                label=label.tolist(),
                union=(label + shown - both).tolist(),
            )
        )
    return rows
