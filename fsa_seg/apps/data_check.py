"""Check a data root: every file of a data set is present and holds what the data set's config says."""

import os
from collections.abc import Sequence

import numpy as np
from mmseg.registry import DATASETS

from fsa_seg.config.components import component_names, dataset_config, known_images, load_component, with_classes
from fsa_seg.datasets.data_sets import (
    check_count,
    check_scan,
    file_classes,
    left_out,
    list_images,
    missing_files,
    scan_images,
)
from fsa_seg.datasets.images import read_image
from fsa_seg.datasets.label_images import WIDE_VOID, check_rule, check_seen, read_labels, without_zero
from fsa_seg.datasets.prepare.preparations import PREPARATIONS
from fsa_seg.errors import UserError, one_of
from fsa_seg.system.markdown import markdown_table
from fsa_seg.visualization.pictures import picture_grid, picture_path, write_picture

SAMPLES = 4  # pictures of each data set
MOST_PROBLEMS = 5  # of a data set that the table lists
SEED = 0


def dataset_names(root: str, names: Sequence[str]) -> list[str]:
    """Return the names or files of the data set configs that names stand for.

    Args:
        root: the data root.
        names: keys of `PREPARATIONS`, names of configs/datasets/, or files. Without names, the data sets whose folder
            the data root has.

    Raises:
        UserError: an unknown name, or a data root that does not exist or has no data set.
    """
    if not os.path.isdir(root):
        raise UserError(f'the data root {root} does not exist')
    if not names:
        present = [
            name
            for name in component_names('dataset')
            if os.path.isdir(_label_folder(root, load_component('dataset', name)))
        ]
        if not present:
            raise UserError(
                f'{root} has the folder of no data set; give the data root, which holds VOCdevkit, cityscapes, ade, ...'
            )
        return present
    configs = []
    for name in names:
        if not name.endswith('.py'):
            one_of(name, {*PREPARATIONS, *component_names('dataset')}, 'data set')
        prepared = name in PREPARATIONS and name not in component_names('dataset')
        configs += PREPARATIONS[name].benchmarks if prepared else [name]
    return list(dict.fromkeys(configs))


def check_data(root: str, names: Sequence[str], pictures: str | None = None) -> list[dict]:
    """Check data sets, and return the report of each, see `check_data_set`.

    Args:
        root: the data root.
        names: of `dataset_names`.
        pictures: folder for pictures; None draws none.
    """
    scans = {}  # data sets with the same files share their scans
    return [check_data_set(root, name, scans, pictures) for name in names]


def check_data_set(root: str, name: str, shared_scans: dict, pictures: str | None = None) -> dict:
    """Check a data set, and return a report, ready for JSON.

    Every image and label image is decoded. Keys of the report:
        problems: what makes a run wrong, a line each; empty if the data set is right.
        mend: how to mend the problems.
        notes: what deserves a look, a line each.
        values: least and greatest label other than void; empty without labels.
        modes: Pillow's mode -> number of label images.
        pixels: class -> number of pixels.
        void: share of the pixels that do not count, 0 to 1.
        pictures: paths of images drawn with their labels.

    Args:
        root: the data root.
        name: name or file of a data set's config.
        shared_scans: scans of earlier data sets; the scans of this data set are added.
        pictures: folder for pictures; None draws none.
    """
    part = load_component('dataset', name)
    report = _empty_report(part, root)
    try:
        part = with_classes(part, root)
        config = dict(dataset_config(part, root), serialize_data=False)
        entries = list_images(config)
        dataset = DATASETS.build(dict(config, pipeline=[], lazy_init=True))
        classes, palette = file_classes(dataset)
        check_rule(len(classes), dataset.reduce_zero_label, dataset.ignore_index, part.get('label_map'))
        report['notes'] += [f'not used: {line}' for line in left_out(config)]
    except UserError as error:
        report['problems'].append(str(error))
        return report
    report.update(images=len(entries), classes=len(classes))
    _passes(report, check_count, entries, report['known'], part.name)
    entries = _present_entries(report, entries)
    loading = part.get('label_map'), part.get('image_max')
    scans = _scan_once(shared_scans, entries, part.name, loading)
    values, void = len(classes) + dataset.reduce_zero_label, dataset.ignore_index
    right = [scan.entry for scan in scans if _passes(report, check_scan, scan, values, void)]
    _count_pixels(report, scans, classes, dataset.reduce_zero_label, void, 'ignore_index' in part)
    if pictures:
        _draw(report, right, dataset, classes, palette, os.path.join(pictures, part.name), *loading)
    return report


def _empty_report(part, root):
    """Return the report of a data set's part before the check."""
    return dict(
        dataset=part.name,
        folder=os.path.join(root, part.data_root),
        images=0,
        known=known_images(part.name, part.get('images'), root),
        modes={},
        values=[],
        classes=0,
        classes_seen=0,
        void=None,
        pixels={},
        problems=[],
        notes=[],
        pictures=[],
        mend=_how_to_mend(part.name, root),
    )


def _scan_once(shared_scans, entries, name, loading):
    """Return the scans of the entries; data sets with the same files and loading share them."""
    key = str(loading), tuple((entry['img_path'], entry['seg_map_path']) for entry in entries)
    if key not in shared_scans:
        shared_scans[key] = list(scan_images(entries, name, *loading, decode=True))
    return shared_scans[key]


def _present_entries(report, entries):
    """Return the entries whose files exist; missing files are a problem of the report."""
    missing = set(missing_files(entries))
    if missing:
        report['problems'].append(
            f'{len(missing)} of {2 * len(entries)} files are missing, the first is {min(missing)}'
        )
    return [entry for entry in entries if not {entry['img_path'], entry['seg_map_path']} & missing]


def report_table(reports: Sequence[dict]) -> str:
    """Return the reports of `check_data` as a Markdown table, followed by the problems and notes."""
    rows = []
    for report in reports:
        known = report['known']
        known = ' or '.join(map(str, known)) if isinstance(known, (list, tuple)) else known or '–'
        rows.append(
            [
                report['dataset'],
                report['images'],
                known,
                f'{report["values"][0]} to {report["values"][1]}' if report['values'] else '–',
                ', '.join(report['modes']),
                f'{report["classes_seen"]} of {report["classes"]}',
                '–' if report['void'] is None else f'{100 * report["void"]:.1f} %',
                'WRONG' if report['problems'] else 'right',
            ]
        )
    head = ['data set', 'images', 'known', 'labels', 'mode', 'classes seen', 'void', '']
    lines = [markdown_table(head, rows, right=('images', 'known', 'classes seen', 'void'))]
    for report in reports:
        problems = report['problems'][:MOST_PROBLEMS]
        if len(report['problems']) > MOST_PROBLEMS:
            problems.append(f'... and {len(report["problems"]) - MOST_PROBLEMS} more')
        remarks = [*problems, *([f'to mend it, {report["mend"]}'] if problems else []), *report['notes']]
        if remarks:
            lines += ['', f'{report["dataset"]}:', *(f'- {remark}' for remark in remarks)]
    return '\n'.join(lines)


def _count_pixels(report, scans, classes, reduce_zero_label, void, void_named):
    """Add the pixels of each class to a report, with the problems and notes that follow from them."""
    total = np.zeros(WIDE_VOID + 1, np.int64)  # pixels of each label
    for scan in scans:
        if not scan.error:
            report['modes'][scan.mode] = report['modes'].get(scan.mode, 0) + 1
            total[scan.labels] += scan.pixels
    pixels = total.sum()
    if not pixels:
        return
    present = set(np.flatnonzero(total).tolist())
    counted = present - {void}
    report['values'] = [min(counted), max(counted)] if counted else []
    total[void] = 0
    of_class = np.concatenate([total, np.zeros(len(classes), np.int64)])[reduce_zero_label:][: len(classes)]
    names = [name.strip() for name in classes]
    report.update(
        pixels=dict(zip(names, of_class.tolist())),
        classes_seen=int((of_class > 0).sum()),
        void=float(1 - of_class.sum() / pixels),
    )
    try:
        warning = check_seen(present, len(classes), reduce_zero_label, void, void_named)
        report['notes'] += [warning] if warning else []
    except UserError as error:
        report['problems'].append(str(error))
    _note_absent_classes(report, [name for name, count in zip(names, of_class) if not count], len(classes))


def _note_absent_classes(report, absent, classes):
    """Note the classes without a pixel; more than half of a known data set's classes are a problem."""
    if len(absent) < classes and report['known'] and 2 * len(absent) > classes:
        report['problems'].append(
            'more than half of the classes are in no label image: '
            f'the labels {report["values"]} are none of {report["dataset"]}'
        )
    if absent:
        names = ', '.join(absent[:8] + ['...'] * bool(absent[8:]))
        report['notes'].append(f'{len(absent)} classes are in no label image: {names}')


def _draw(report, entries, dataset, classes, palette, folder, label_map, image_max):
    """Draw SAMPLES images with their labels, and list the pictures in the report."""
    order = np.random.default_rng(SEED).permutation(len(entries))[:SAMPLES]
    for i in sorted(order.tolist()):
        labels = read_labels(entries[i]['seg_map_path'], label_map)
        if dataset.reduce_zero_label:
            labels = without_zero(labels, dataset.ignore_index)
        path = picture_path(folder, entries[i]['img_path'], dataset.data_root)
        write_picture(
            picture_grid(read_image(entries[i]['img_path'], image_max), dict(labels=labels), classes, palette), path
        )
        report['pictures'].append(path)


def _passes(report, check, *arguments):
    """Return whether a check passes; its UserError is a problem of the report."""
    try:
        check(*arguments)
    except UserError as error:
        report['problems'].append(str(error))
        return False
    return True


def _how_to_mend(name, root):
    """Return the advice for a data set with problems, which follows the words 'to mend it, '."""
    for key, preparation in PREPARATIONS.items():
        if name in preparation.benchmarks:
            return (
                f'remove the wrong files, and run fsa-seg prepare {key} --from DOWNLOADS --to {root} '
                f'({preparation.sources})'
            )
    return "mend the files, or the data set's config"


def _label_folder(root, part):
    return os.path.join(root, part.data_root, part.data_prefix.get('seg_map_path', ''))
