"""A folder of results as the page shows it: pick a cell and an image, see image, truth, and the labels of each row.

    folder = ResultsFolder(['work_dirs'])            # reads every result; UserError without a result
    folder.left_out                                  # a line for each file that is not used
    cell = folder.cells[0]                           # cell.title, cell.notes: lines to be shown
    name, before, after, gain = folder.images(cell)[0]
    shown = folder.show(cell, name)                  # a `ShownImage`

A cell is a baseline and its row with feedback, or a result without a partner, whose `rows` has one entry. Labels are
those that the run has saved. Labels that are not saved, or are not what the result counted, are computed on the spot.
Every error is a UserError. Several threads may call at a time; one at a time computes.
"""

import contextlib
import functools
import gc
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmseg.registry import MODELS

from fsa_seg.config.fingerprint import shared_key, versions
from fsa_seg.datasets.label_images import WIDE_VOID
from fsa_seg.datasets.palette import even_palette
from fsa_seg.errors import UserError, built, one_line
from fsa_seg.evaluation.report.collect import WORTHS, Light, find_results, heavy, worth
from fsa_seg.evaluation.report.examples import Scene, check_truth, find_scene, miscounted, saved_config, saved_labels
from fsa_seg.evaluation.report.rows import Row, make_tables
from fsa_seg.evaluation.report.statistics import image_mious, image_of, unlike_images
from fsa_seg.evaluation.results import feedback_title, row_name, toy_note
from fsa_seg.models.segmentor import configured_method
from fsa_seg.models.shared_pass import SHARED_KEYS, check_finite_stages, finite_field, label_field
from fsa_seg.ops.device import device_name, trim_memory
from fsa_seg.system.paths import file_state, sources_digest
from fsa_seg.system.progress import Bar

VOID = WIDE_VOID  # in `ShownImage.truth`: pixels that do not count
SAVED, COMPUTED = 'saved labels', 'computed now'


class ResultCell(NamedTuple):
    """What a user picks.

    Attributes:
        title: such as 'SCLIP, without and with FSA, on voc21 (sclip, toy): 44.1 → 47.2', mIoU in percent.
        rows: the results of the baseline and of the row with feedback, or one result.
        notes: what a reader of the figures has to know, such as that they are of the toy world.
    """

    title: str
    rows: tuple[Light, ...]
    notes: tuple[str, ...]


class ImageGain(NamedTuple):
    """The mIoU of a single image in both rows of a cell, in percent; NaN without a counted pixel.

    A cell of one row has `after` alone; `before` and `gain` are NaN.
    """

    name: str
    before: float
    after: float
    gain: float


class ShownRow(NamedTuple):
    """The labels of an image in a row of a cell.

    Attributes:
        title: of the row, such as 'SCLIP + FSA'.
        labels: (height, width) uint16, indices of classes.
        miou: of the image alone, in percent, as the result counted; NaN without a counted pixel.
        iou: class -> IoU in percent, as the result counted, of the classes in the image's truth or in its labels.
        origin: SAVED or COMPUTED.
        notes: why saved labels are not used, and how computed labels differ from those that the result counted.
    """

    title: str
    labels: np.ndarray
    miou: float
    iou: dict[int, float]
    origin: str
    notes: tuple[str, ...]


class ShownImage(NamedTuple):
    """An image of a cell.

    Attributes:
        name: of the image.
        rgb: (height, width, 3) uint8, as the data set loads it.
        truth: (height, width) uint16, indices of classes, and VOID.
        classes: names.
        palette: RGB colour of each class, 0..255.
        rows: as the cell's.
    """

    name: str
    rgb: np.ndarray
    truth: np.ndarray
    classes: list[str]
    palette: list[tuple[int, int, int]]
    rows: tuple[ShownRow, ...]


class ResultsFolder:
    """The results in files and folders.

    Args:
        places: as of `fsa_seg.evaluation.report.collect.find_results`.
        data_root: folder of all data sets; by default the folder that each result names.

    Attributes:
        cells: what a user picks, in the order of the report's tables.
        left_out: a line for each file that is not used: the file, and why.

    Raises:
        UserError: a place does not exist, or no place holds a result.
    """

    def __init__(self, places: Sequence[str], data_root: str | None = None):
        found = find_results(places, functools.partial(Bar, desc='results', unit='file', leave=False))
        self.left_out = [*found.left_out, *found.duplicates]
        self.cells = [cell for kind in WORTHS for cell in _cells([r for r in found.results if worth(r) == kind])]
        self._data_root = data_root
        self._states = {result['path']: file_state(result['path']) for result in found.results}
        self._opening, self._passes = threading.Lock(), _Passes()

    def images(self, cell: ResultCell) -> list[ImageGain]:
        """Return the images of a cell: the largest gain first, images without a gain last.

        The images of a cell of one row are sorted by their mIoU.
        """
        with self._unchanged(cell):
            counts = [heavy(row['path']).counts for row in cell.rows]
            if reason := unlike_images(counts[0], counts[-1]):
                raise UserError(reason)
            after = image_mious(counts[-1])
            before = image_mious(counts[0]) if len(counts) > 1 else np.full_like(after, np.nan)
            values = np.stack([before, after, after - before], 1)
            order = np.argsort(-(values[:, 2] if len(counts) > 1 else after), kind='stable')  # NaN last
            return [ImageGain(counts[-1].images[i], *values[i].tolist()) for i in order]

    def show(self, cell: ResultCell, image: str) -> ShownImage:
        """Return an image of a cell with its truth and labels.

        Args:
            cell: of `cells`.
            image: name, as in `images`.

        Raises:
            UserError: a result file has changed, data or weights are missing, or the data is not what the results
                counted.
        """
        with self._unchanged(cell):
            with self._opening:  # a user's classes may be registered
                scene = find_scene(cell.rows[-1]['path'], image, self._data_root)
            found = {row['path']: _saved(row, scene) for row in cell.rows}
            absent = [row for row in cell.rows if found[row['path']].labels is None]
            for path, labels in self._passes.run(absent, scene).items() if absent else ():
                found[path] = labels._replace(notes=(*found[path].notes, *labels.notes))
            names = [entry['name'] for entry in cell.rows[-1]['classes']]
            palette = scene.dataset.metainfo.get('palette') or ()
            palette = palette if len(palette) == len(names) else even_palette(len(names))
            return ShownImage(
                image,
                scene.image,
                scene.truth.astype(np.uint16),
                names,
                [tuple(map(int, color)) for color in palette],
                tuple(_shown_row(row, scene, found[row['path']]) for row in cell.rows),
            )

    @contextlib.contextmanager
    def _unchanged(self, cell: ResultCell) -> Iterator[None]:
        """Raise a UserError if a result file of a cell has changed, and in place of every error in the block."""
        for path in (row['path'] for row in cell.rows):
            with contextlib.suppress(OSError):
                if file_state(path) == self._states[path]:
                    continue
            raise UserError(f'{path} has changed or vanished since it was read; start fsa-seg demo again')
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # of a config, a data set or a file of another machine
            paths = ', '.join(row['path'] for row in cell.rows)
            raise UserError(f'{paths} cannot be shown ({one_line(error)}); run the cells again') from error


def _cells(results: Sequence[Light]) -> Iterator[ResultCell]:
    """Yield the cells of results of one worth, in the order of their table."""
    by_path = {result['path']: result for result in results}
    for table in make_tables([_complete(result) for result in results]):
        rows = [(row, cell) for row, cell in table.cells() if cell.result]
        pairs = {id(cell): cell.pair for _, cell in rows if cell.pair and not cell.pair.problem}
        baselines = {id(pair.before) for pair in pairs.values()}
        for row, cell in rows:
            pair = pairs.get(id(cell))
            if pair is None and id(cell) in baselines:
                continue
            parts = [by_path[part.result['path']] for part in ([pair.before, cell] if pair else [cell])]
            yield ResultCell(_title(row, parts), tuple(parts), _notes(parts[-1], pair and pair.note))


def _complete(result: Light) -> Light:
    """Return a result as a complete one: tables leave out parts of a data set and random weights."""
    return dict(result, partial=False, cell=dict(result['cell'], random_weights=None))


def _title(row: Row, results: Sequence[Light]) -> str:
    """Return the title of a cell; the results are the baseline and the row with feedback, or one result."""
    cell, images = results[-1]['cell'], results[-1]['flat']['images']
    name = row_name(cell)
    if len(results) > 1:
        name = f'{row_name(results[0]["cell"])}, without and with {feedback_title(cell["feedback"])},'
    about = [row.name[3], cell['backbone'], cell['vfm']]
    about += ['toy'] * cell['toy'] + [f'a part of the data set: {images} images'] * results[-1]['partial']
    about += ['random weights'] * (cell.get('random_weights') is not None)
    values = ['–' if (value := result['metrics']['mIoU']) is None else f'{value:.1f}' for result in results]
    return f'{name} on {cell["dataset"]} ({", ".join(dict.fromkeys(filter(None, about)))}): {" → ".join(values)}'


def _notes(result: Light, note: str | None) -> tuple[str, ...]:
    """Return what a reader of a cell's figures has to know."""
    kind = worth(result)
    worths = [WORTHS[kind]] if kind in ('partial', 'random') else []
    return tuple(filter(None, [toy_note(result['cell']), *(f'These are numbers of {text}.' for text in worths), note]))


class _Labels(NamedTuple):
    """Labels (height, width) of an image, or None; see `ShownRow`."""

    labels: np.ndarray | None
    origin: str
    notes: tuple[str, ...] = ()


def _saved(result: Light, scene: Scene) -> _Labels:
    """Return the saved labels of an image; None, and why, if they cannot be used."""
    try:
        check_truth(result, scene)
    except UserError as error:
        raise UserError(
            f'{error}: the data in {scene.dataset.data_root} has changed, or is not that of the run; name the folder '
            'of all data sets by --data-root'
        ) from None
    if not result['label_folder']:
        return _Labels(None, SAVED)
    try:
        return _Labels(saved_labels(result, scene), SAVED)
    except UserError as error:
        return _Labels(None, SAVED, (str(error),))


def _shown_row(result: Light, scene: Scene, found: _Labels) -> ShownRow:
    """Return the labels of an image in a row, with their figures."""
    counts = image_of(heavy(result['path']).counts, scene.name)
    (intersection,), (union,) = counts.intersection, counts.union
    iou = {i: 100 * float(intersection[i] / union[i]) for i in union.nonzero()[0].tolist()}
    labels = found.labels.astype(np.uint16)
    return ShownRow(row_name(result['cell']), labels, float(image_mious(counts)[0]), iou, found.origin, found.notes)


class _Passes:
    """Computes labels by the configs of results; keeps the last segmentors, and the models of one backbone."""

    def __init__(self):
        self._lock = threading.Lock()
        self._backbone: str | None = None
        self._models: dict[str, Any] = {}
        self._passes: dict[str, torch.nn.Module] = {}

    def run(self, results: Sequence[Light], scene: Scene) -> dict[str, _Labels]:
        """Return path -> labels of an image, of results of one backbone; rows that share trunk and VFM run once."""
        groups: dict[str, list[tuple[Light, Config]]] = {}
        with self._lock:
            for result in results:
                config = _run_config(result)
                entries = [entry for entry in result['fingerprint'] if entry.level == 'number']
                key = json.dumps([shared_key(entries), *map(config.model.get, SHARED_KEYS)])
                groups.setdefault(key, []).append((result, config))
            found = {}
            for group in groups.values():
                found.update(self._run(*zip(*group), scene))
            return found

    @torch.no_grad()
    def _run(self, results: Sequence[Light], configs: Sequence[Config], scene: Scene) -> dict[str, _Labels]:
        """Return the labels of results that share trunk and VFM."""
        model = self._model(results, configs)
        item = {key: [value] for key, value in scene.item.items()}
        (sample,) = model.test_step(item)
        found = {}
        for i, (result, config) in enumerate(zip(results, configs)):
            field = label_field(i) if len(results) > 1 else 'pred_sem_seg'
            if (finite := sample.get(finite_field(field))) is not None:
                check_finite_stages(finite, scene.name, f'{row_name(result["cell"])}, {config.model.precision}')
            labels = sample.get(field).data[0].cpu().numpy()
            count = miscounted(result, scene, labels)
            member = model.members[i] if len(results) > 1 else model
            notes = (_difference(result, scene, count, config.model.precision, member.weights),) if count else ()
            found[result['path']] = _Labels(labels, COMPUTED, notes)
        return found

    def _model(self, results: Sequence[Light], configs: Sequence[Config]) -> torch.nn.Module:
        """Return the segmentor of a result, or the shared pass of several."""
        name = json.dumps([[result['path'], file_state(result['path'])] for result in results])
        if name not in self._passes:
            self._make_room(configs[0].model)
            members = [config.model for config in configs]
            config = members[0] if len(members) == 1 else dict(type='SharedPass', members=members)
            if len(members) > 1 or configured_method(config) is not None:
                config = dict(config, models=self._models)
            self._passes[name] = built('the segmentor of this result', lambda: MODELS.build(config)).to(get_device())
        return self._passes[name]

    def _make_room(self, model: Mapping[str, Any]) -> None:
        """Drop the segmentors of the last cell; of another backbone, also its models."""
        backbone = json.dumps([model.get('backbone'), model.get('precision')], sort_keys=True, default=str)
        self._passes.clear()
        if backbone != self._backbone:
            self._models.clear()
            self._backbone = backbone
            gc.collect()
            torch.cuda.empty_cache()
            trim_memory()


def _run_config(result: Light) -> Config:
    """Return the config of a result for this machine; on a CPU, half precision of a GPU becomes float32."""
    config = saved_config(result['path'])
    config.model.compile = False
    if get_device() == 'cpu' and not result['device'].startswith('cpu'):
        config.model.precision = 'fp32'
    return config


def _difference(result: Light, scene: Scene, count: int, precision: str, weights: Mapping[str, str | None]) -> str:
    """Return how computed labels differ from those that a result counted, and why that can be."""
    then = {key: value for key, value, _ in result['fingerprint']}
    now = {f'version of {name}': version for name, version in versions().items()}
    now = {'device': device_name(get_device()), 'model.precision': precision, 'package': sources_digest(), **now}
    reasons = [
        'the code of the suite' if key == 'package' else f'{key.removeprefix("model.")} (was {then[key]}, is {value})'
        for key, value in now.items()
        if key in then and then[key] != value
    ]
    reasons += [
        f'the weights of {role}'
        for role, digest in weights.items()
        if None not in (digest, result['weights'].get(role)) and digest != result['weights'][role]
    ]
    total = int((scene.truth != VOID).sum())
    return (
        f'at least {count} of {total} counted pixels differ from the labels that the result counted; since then these '
        f'have changed: {", ".join(reasons) or "nothing that is known, but the number of windows at once may have"}'
    )
