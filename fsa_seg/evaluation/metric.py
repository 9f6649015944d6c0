"""The metric: exact counts per image, from which mIoU, its parts and the confusion matrix follow.

Shape legend: K classes; a confusion matrix is (K truth, K predicted), in pixels.
"""

import contextlib
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.logging import print_log
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS

from fsa_seg.errors import StopError, UserError
from fsa_seg.evaluation.label_files import label_path, write_labels
from fsa_seg.models.shared_pass import check_finite_stages, finite_field
from fsa_seg.ops.device import count_labels, to_device, to_host
from fsa_seg.system.paths import file_digest

MOST_LOGGED = 200  # classes whose IoU the log shows; the result has all classes


class Journal:
    """The counts of an interrupted run: one file for each process and run, one line for each image.

    A line holds a seal of the cell, of the image and of its label image. A line without its seal (torn, garbled, of
    another cell, of changed files) is ignored, and its image is counted again.

    Args:
        folder: folder of the files; made with the first line.
        cell: hash of the cell's settings and of the code behind the settings.
        contents: image name -> digest of the present contents of the image and its label image.
        weights: digests of the files of weights, None for an absent file. The caller replaces `self.weights` after
            the models are loaded.
    """

    def __init__(self, folder: str, cell: str, contents: Mapping[str, str], weights: Iterable[str | None] = ()):
        self.folder, self.weights, self._cell, self._contents = folder, list(weights), cell, contents
        self._path = os.path.join(folder, f'{get_rank()}_{secrets.token_hex(8)}.jsonl')

    def keep(self, name: str, counts: np.ndarray, labels: str | None = None) -> None:
        """Append the sparse confusion matrix (3, n) of an image, and the digest of its file of predicted labels.

        Raises:
            StopError: the disk is full.
        """
        line = [name, self._contents[name], self.weights, counts.tolist(), labels]
        try:
            os.makedirs(self.folder, exist_ok=True)
            with open(self._path, 'a', encoding='utf-8') as f:
                f.write(json.dumps([*line, self._seal(line)]) + '\n')
        except OSError as error:
            raise StopError(
                f'{self._path} cannot be written: {error.strerror}; make room, and run the same command again: it goes '
                'on with what is counted'
            ) from None

    def read(self, label_file: Callable[[str], str] | None = None) -> dict[str, np.ndarray]:
        """Return the counts in all lines with a right seal: image name -> sparse confusion matrix (3, n).

        Args:
            label_file: function from an image's name to the path of its predicted labels. A line then counts only if
                the file is there as the line's run wrote it.
        """
        matrices = {}
        for path in sorted(glob.glob(os.path.join(glob.escape(self.folder), '*.jsonl'))):
            with contextlib.suppress(FileNotFoundError), open(path, encoding='utf-8', errors='replace') as f:
                for text in f:  # no file: another run has finished the cell meanwhile
                    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError, OverflowError):
                        name, content, weights, counts, labels, seal = json.loads(text)
                        if (
                            content == self._contents[name]
                            and self._same(weights)
                            and seal == self._seal([name, content, weights, counts, labels])
                            and (label_file is None or labels is not None and labels == _digest(label_file(name)))
                        ):
                            matrices[name] = np.array(counts, np.int64)
        return matrices

    def remove(self) -> None:
        """Remove the files, once the result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _same(self, weights):
        """Return whether the digests of weights agree with the present ones; None agrees with every digest."""
        return len(weights) == len(self.weights) and all(
            a == b or None in (a, b) for a, b in zip(weights, self.weights)
        )

    def _seal(self, line):
        """Return a digest of the cell and a line."""
        return hashlib.sha256(json.dumps([self._cell, *line]).encode()).hexdigest()[:16]


def _digest(path):
    """Return the digest of a file; None for a missing file."""
    return file_digest(path) if os.path.isfile(path) else None


@METRICS.register_module()
class ExactIoUMetric(IoUMetric):
    """mmseg's `IoUMetric` with exact int64 counts for each image.

    An image that a distributed sampler repeats counts once.

    Args:
        ignore_index: label of pixels that do not count.
        prefix: head of the metrics' names, see mmengine's `BaseMetric`.
        root: the data root; an image's name is its path below the root.
        field: field of the data samples that holds the predicted labels.
        output_dir: folder of the predicted labels as PNG, named as the images; None writes none. Labels are those of
            the files: with `reduce_zero_label` the first class is 1, see `fsa_seg.evaluation.label_files`.
        keep_results: mmseg's tools/test.py --out sets it; it changes nothing.

    Attributes:
        images (list of str): names of the images, sorted; filled by `evaluate`.
        confusions (list): sparse confusion matrices (3, n), in the order of `images`; filled by `evaluate`.
        done (dict): image name -> sparse confusion matrix, of the images that an interrupted run has evaluated.
        isolated (bool): whether an error of this metric is kept as `failure`, so that it ends no other metric.
        failure (UserError): why the metric cannot be computed; nothing more is counted then. None without a failure.
        part (bool): the images are a part of the split, so that there are no figures.
        journal (Journal): keeps the counts of every image as soon as they are there; None keeps nothing.
        settings (str): how messages name the segmentor's settings.
        by_path (bool): files of predicted labels lie in `output_dir` as the images lie below `root`; else side by side.

    Raises (while processing):
        UserError: a label or a prediction outside the classes, or numbers that are not finite; the message names the
            file.
    """

    default_prefix = ''

    def __init__(
        self,
        ignore_index: int = 255,
        prefix: str | None = None,
        root: str = '',
        field: str = 'pred_sem_seg',
        output_dir: str | None = None,
        keep_results: bool = False,
    ):
        super().__init__(ignore_index=ignore_index, iou_metrics=['mIoU'], prefix=prefix, output_dir=output_dir)
        self.images, self.confusions, self.done, self.journal = [], [], {}, None
        self.root, self.field, self.settings, self.by_path = root, field, 'the given settings', False
        self.isolated, self.failure, self.part = False, None, False
        self._pending = []
        self._written = {}  # file of predicted labels -> image

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Count a batch's pixels; a GPU's counts are read at the next batch, so that the CPU does not wait for them."""
        if self.failure is None:
            with self._failing():
                self._process(data_samples)

    def _process(self, data_samples):
        classes, before = len(self.dataset_meta['classes']), len(self._pending)
        for sample in data_samples:
            predicted, truth = sample[self.field]['data'].squeeze(0), sample['gt_sem_seg']['data'].squeeze(0)
            if 'truth' not in sample:  # the metrics of a pass share one copy on the device
                sample['truth'] = to_device(truth, predicted.device)
            written = self._write(sample, predicted) if self.output_dir else None
            with _named(sample['seg_map_path']):
                counts = _counting(sample['truth'], predicted, classes, self.ignore_index)
            finite = sample.get(finite_field(self.field))  # absent in the samples of other segmentors
            finite = finite is not None and to_host(finite)
            self._pending.append((sample['img_path'], sample['seg_map_path'], truth, counts, finite, written))
        self._settle(before if predicted.is_cuda else len(self._pending))

    @contextlib.contextmanager
    def _failing(self):
        """Keep an error of the cell as `failure` where cells are `isolated`; any other error is raised."""
        try:
            yield
        except UserError as error:
            if isinstance(error, StopError) or not self.isolated:
                raise
            self.failure = error

    def settle(self) -> None:
        """Keep the counts of all images whose labels are there."""
        if self.failure is None:
            with self._failing():
                self._settle(len(self._pending))

    def _write(self, sample, predicted):
        """Write the predicted labels of a sample, and return the file's digest."""
        image = sample['img_path']
        path = label_path(self.output_dir, self._name(image) if self.by_path else os.path.basename(image))
        if self._written.setdefault(path, image) != image:
            raise UserError(f'{path} would hold the labels of two images, {self._written[path]} and {image}')
        return write_labels(path, predicted.cpu().numpy(), self.dataset_meta, bool(sample.get('reduce_zero_label')))

    def _name(self, image):
        """Return the name of an image: its path below the data root."""
        return os.path.relpath(image, self.root or '.')

    def _settle(self, count):
        """Keep the counts of the first `count` pending images."""
        for image, labels, truth, counts, finite, written in self._pending[:count]:
            if finite:
                check_finite_stages(finite(), image, self.settings)
            with _named(labels):
                counts = _sparse(truth, counts(), len(self.dataset_meta['classes']), self.ignore_index)
            name = self._name(image)
            self.results.append((name, counts))
            if self.journal:
                self.journal.keep(name, counts, written)
        del self._pending[:count]

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather the counts of all processes and of `done`, and return the metrics in percent; see `metrics`.

        After a failure on any process, and for a part of a split, the dict is empty.

        Args:
            size: number of images in the data set.
        """
        self.settle()
        gathered = dict(self.done)
        for part, failure in all_gather_object((self.results, self.failure and str(self.failure))):
            gathered.update(part)
            self.failure = self.failure or (failure and UserError(failure))
        self.results.clear()
        if self.failure or self.part:
            return {}
        if len(gathered) < size:
            raise RuntimeError(f'{len(gathered)} images were evaluated, but the data set has {size}')
        self.images = sorted(gathered)
        self.confusions = [gathered[name] for name in self.images]
        figures = metrics(sum_confusions(self.confusions, len(self.dataset_meta['classes'])))
        if is_main_process():
            self._log(figures)
        return {'/'.join(filter(None, (self.prefix, key))): figures[key] for key in ('aAcc', 'mIoU', 'mAcc')}

    def _log(self, figures):
        """Log the IoU of the first classes; `figures` is what `metrics` returns."""
        rows = [
            f'{name:>20}  {iou:6.2f}' if iou == iou else f'{name:>20}       –'
            for name, iou in zip(self.dataset_meta['classes'], figures['IoU'])
        ]
        if len(rows) > MOST_LOGGED:
            rows[MOST_LOGGED:] = [f'and {len(rows) - MOST_LOGGED} more classes, which the result file has']
        print_log('per-class IoU in percent (– where absent from truth and prediction):\n' + '\n'.join(rows), 'current')


def confusion(truth: torch.Tensor, predicted: torch.Tensor, classes: int, ignore_index: int = 255) -> np.ndarray:
    """Return the sparse confusion matrix of one image: int64 (3, n), rows truth, predicted, pixels.

    >>> confusion(torch.tensor([[0, 1, 255]]), torch.tensor([[0, 0, 1]]), 2).tolist()
    [[0, 1], [0, 0], [1, 1]]

    Args:
        truth, predicted: integer labels (height, width).
        classes: K.
        ignore_index: label of the truth that does not count.

    Raises:
        ValueError: sizes differ, or a label lies outside 0..K-1 and is not `ignore_index`.
    """
    return _sparse(truth, _counting(truth, predicted, classes, ignore_index)(), classes, ignore_index)


@contextlib.contextmanager
def _named(path):
    """Turn a ValueError into a UserError that names the file of labels."""
    try:
        yield
    except ValueError as error:
        raise UserError(f'{path}: {error}') from None


def _counting(truth, predicted, classes, ignore_index):
    """Start to count the pixels of each pair of labels; return a function that waits for the counts.

    The function returns the pairs that occur, truth · (K + 1) + predicted, increasing, and the pixels of each pair:
    int64 (n, ) each. A label outside of 0..K-1 counts as K, and ignored truth does not count. Each pixel adds to a
    table of all pairs; if the pairs outnumber the pixels, the pixels are sorted by their pair instead.
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
    """Return the distinct values below `stop` in a sorted tensor, and how often each value occurs."""
    return ordered[ordered < stop].unique_consecutive(return_counts=True)


def _occurring(table):
    """Return the indices at which a table (n, ) is not 0, and the counts at these indices."""
    pairs = table.nonzero().flatten()
    return pairs, table[pairs]


def _sparse(truth, counts, classes, ignore_index):
    """Return the counts of `_counting` as a sparse confusion matrix; a label outside the classes is a ValueError."""
    pairs, pixels = (values.numpy() for values in counts)
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


def sum_confusions(confusions: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """Return the sum of sparse confusion matrices (3, n) as a dense matrix, (K, K) int64."""
    total = np.zeros((classes, classes), np.int64)
    for truth, predicted, pixels in confusions:
        np.add.at(total, (truth, predicted), pixels)
    return total


def metrics(total: np.ndarray) -> dict:
    """Return mIoU, mAcc, aAcc (percent, unrounded) and per-class IoU and Acc (percent, NaN where undefined).

    mIoU leaves out the classes that are absent from both truth and prediction. mAcc leaves out the classes that are
    absent from the truth.

    Args:
        total: confusion matrix (K, K), in pixels.
    """
    intersect, label, predicted = np.diag(total), total.sum(1), total.sum(0)
    with np.errstate(invalid='ignore', divide='ignore'):
        iou = 100 * intersect / (label + predicted - intersect)
        acc = 100 * intersect / label
        return dict(
            mIoU=_mean(iou),
            mAcc=_mean(acc),
            aAcc=float(100 * intersect.sum() / total.sum()),
            IoU=iou.tolist(),
            Acc=acc.tolist(),
        )


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values that are numbers; NaN if none is."""
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))


def per_image_counts(confusions: Iterable[np.ndarray]) -> list[dict]:
    """Return each image's pixels by class: dict(classes, intersection, union, label).

    The four lists of a dict are parallel, over the classes in the image's truth or prediction.

    Args:
        confusions: sparse confusion matrices (3, n).
    """
    rows = []
    for truth, predicted, pixels in confusions:
        classes = np.union1d(truth, predicted)
        label, prediction, intersection = np.zeros((3, len(classes)), np.int64)
        np.add.at(label, np.searchsorted(classes, truth), pixels)
        np.add.at(prediction, np.searchsorted(classes, predicted), pixels)
        right = truth == predicted
        intersection[np.searchsorted(classes, truth[right])] = pixels[right]
        rows.append(
            dict(
                classes=classes.tolist(),
                intersection=intersection.tolist(),
                label=label.tolist(),
                union=(label + prediction - intersection).tolist(),
            )
        )
    return rows
