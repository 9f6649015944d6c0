"""The check of a data root: is every file of a data set there, and does it hold what the data set's config says?"""

import os

import numpy as np
from mmseg.registry import DATASETS

from fsa_seg.config.components import dataset_config, known_images, load_part, part_names, with_classes
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
from fsa_seg.visualization.pictures import panel, picture_path, write_picture

SAMPLES = 4  # pictures of each data set
SEED = 0


def data_sets(root, names):
    """Return the data set configs that names stand for: those of `PREPARATIONS`, of configs/datasets/, or files.

    Args:
        root (str): the data root.
        names (list of str): none stand for all data sets whose folder is there.

    Raises:
        UserError: an unknown name, or a data root that has none of them.
    """
    if not os.path.isdir(root):
        raise UserError(f'the data root {root} does not exist')
    if not names:
        found = [
            name for name in part_names('dataset') if os.path.isdir(_label_folder(root, load_part('dataset', name)))
        ]
        if not found:
            raise UserError(
                f'{root} has the folder of no data set; give the data root, which holds VOCdevkit, cityscapes, ade, ...'
            )
        return found
    out = []
    for name in names:
        if not name.endswith('.py'):
            one_of(name, {*PREPARATIONS, *part_names('dataset')}, 'data set')
        out += PREPARATIONS[name].benchmarks if name in PREPARATIONS and name not in part_names('dataset') else [name]
    return list(dict.fromkeys(out))


def check_data(root, names, pictures=None):
    """Check data sets, and return a JSON-ready report of each: see `check_data_set`.

    Args:
        root (str): the data root.
        names (list of str): of `data_sets`.
        pictures (str): folder of pictures.
    """
    scans = {}  # two data sets that have the same files share what was seen of them
    return [check_data_set(root, name, scans, pictures) for name in names]


def check_data_set(root, name, scans, pictures=None):
    """Return what one data set of a data root looks like, as a JSON-ready dict.

    Every image and label image is decoded. `problems` is what makes a run wrong, with `mend`; it is empty where all is
    right. `notes` is worth a look. `modes` counts the label images by Pillow's modes, `pixels` each class's pixels, `void`
    is the share of those that do not count, and `pictures` are drawn overlays of some images.

    Args:
        root (str): the data root.
        name (str): name or file of a data set's config.
        scans (dict): of earlier data sets, to be added to.
        pictures (str): folder of pictures; None draws none.
    """
    part = load_part('dataset', name)
    report = dict(
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
        mend=_mend(part.name, root),
    )
    try:
        part = with_classes(part, root)
        config = dict(dataset_config(part, root), serialize_data=False)
        entries = list_images(config)
        built = DATASETS.build(dict(config, pipeline=[], lazy_init=True))
        classes, palette = file_classes(built)
        check_rule(len(classes), built.reduce_zero_label, built.ignore_index, part.get('label_map'))
        report['notes'] += [f'not used: {line}' for line in left_out(config)]
    except UserError as error:
        report['problems'].append(str(error))
        return report
    report.update(images=len(entries), classes=len(classes))
    values, void = len(classes) + built.reduce_zero_label, built.ignore_index
    _passes(report, check_count, entries, report['known'], part.name)
    missing = set(missing_files(entries))
    if missing:
        report['problems'].append(
            f'{len(missing)} of {2 * len(entries)} files are missing, the first is {min(missing)}'
        )
        entries = [entry for entry in entries if not {entry['img_path'], entry['seg_map_path']} & missing]
    loading = part.get('label_map'), part.get('image_max')
    key = str(loading), tuple((entry['img_path'], entry['seg_map_path']) for entry in entries)
    if key not in scans:
        scans[key] = list(scan_images(entries, part.name, *loading, decode=True))
    right = [scan.entry for scan in scans[key] if _passes(report, check_scan, scan, values, void)]
    _count_pixels(report, scans[key], classes, built.reduce_zero_label, void, 'ignore_index' in part)
    if pictures:
        _draw(report, right, built, classes, palette, os.path.join(pictures, part.name), *loading)
    return report


def report_table(reports):
    """Return the reports of `check_data` as a Markdown table, and what is wrong or worth a look below it."""
    lines = [
        '| data set | images | known | labels | mode | classes seen | void | |',
        '|---|---:|---:|---|---|---:|---:|---|',
    ]
    for report in reports:
        known = report['known']
        known = ' or '.join(map(str, known)) if isinstance(known, (list, tuple)) else known or '–'
        void = '–' if report['void'] is None else f'{100 * report["void"]:.1f} %'
        values = f'{report["values"][0]} to {report["values"][1]}' if report['values'] else '–'
        lines.append(
            f'| {report["dataset"]} | {report["images"]} | {known} | {values} | {", ".join(report["modes"])} | '
            f'{report["classes_seen"]} of {report["classes"]} | {void} | {"WRONG" if report["problems"] else "right"} |'
        )
    for report in reports:
        shown = report['problems'][:5]
        more = [f'... and {len(report["problems"]) - 5} more'] if report['problems'][5:] else []
        said = [*shown, *more, *([f'to mend it, {report["mend"]}'] if shown else []), *report['notes']]
        lines += ['', f'{report["dataset"]}:', *(f'- {line}' for line in said)] if said else []
    return '\n'.join(lines)


def _count_pixels(report, scans, classes, reduce_zero_label, void, void_said):
    """Add to a report what its label images hold."""
    total = np.zeros(WIDE_VOID + 1, np.int64)
    for scan in scans:
        if not scan.error:
            report['modes'][scan.mode] = report['modes'].get(scan.mode, 0) + 1
            total[scan.labels] += scan.pixels
    pixels = total.sum()
    if not pixels:
        return
    counted = [value for value in np.flatnonzero(total) if value != void]
    report['values'] = [int(min(counted)), int(max(counted))] if counted else []
    seen, total[void] = set(np.flatnonzero(total).tolist()), 0
    of_class = np.concatenate([total, np.zeros(len(classes), np.int64)])[reduce_zero_label:][: len(classes)]
    names = [name.strip() for name in classes]
    report.update(
        pixels=dict(zip(names, of_class.tolist())),
        classes_seen=int((of_class > 0).sum()),
        void=float(1 - of_class.sum() / pixels),
    )
    unseen = [name for name, count in zip(names, of_class) if not count]
    try:
        odd = check_seen(seen, len(classes), reduce_zero_label, void, void_said)
        report['notes'] += [odd] if odd else []
    except UserError as error:
        report['problems'].append(str(error))
    if len(unseen) < len(classes) and report['known'] and 2 * len(unseen) > len(classes):
        report['problems'].append(
            'more than half of the classes are in no label image: '
            f'the labels {report["values"]} are none of {report["dataset"]}'
        )
    if unseen:
        shown = ', '.join(unseen[:8] + ['...'] * bool(unseen[8:]))
        report['notes'].append(f'{len(unseen)} classes are in no label image: {shown}')


def _draw(report, entries, built, classes, palette, folder, label_map, image_max):
    """Draw some images with their labels."""
    order = np.random.default_rng(SEED).permutation(len(entries))[:SAMPLES]
    for i in sorted(order.tolist()):
        labels = read_labels(entries[i]['seg_map_path'], label_map)
        if built.reduce_zero_label:
            labels = without_zero(labels, built.ignore_index)
        path = picture_path(folder, entries[i]['img_path'], built.data_root)
        write_picture(panel(read_image(entries[i]['img_path'], image_max), dict(labels=labels), classes, palette), path)
        report['pictures'].append(path)


def _passes(report, check, *arguments):
    """Add what a check raises to a report's problems; return whether it passed."""
    try:
        check(*arguments)
    except UserError as error:
        report['problems'].append(str(error))
        return False
    return True


def _mend(name, root):
    for preparation, about in PREPARATIONS.items():
        if name in about.benchmarks:
            return (
                f'remove what is wrong, and run tools/prepare_dataset.py {preparation} --from DOWNLOADS --to {root} '
                f'({about.sources})'
            )
    return "mend the files, or the data set's config"


def _label_folder(root, part):
    return os.path.join(root, part.data_root, part.data_prefix.get('seg_map_path', ''))
