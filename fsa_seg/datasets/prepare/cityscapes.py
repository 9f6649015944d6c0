"""Cityscapes: train ids are made from polygons or from label ids, by Cityscapes' own library."""

import contextlib
import io
import re

import numpy as np

from fsa_seg.datasets.label_images import decode_labels
from fsa_seg.datasets.prepare.downloads import Downloads
from fsa_seg.datasets.prepare.plan import NOT_ALLOWED, Plan, Preparation, import_optional, index_files, renumber
from fsa_seg.errors import UserError


def plan_cityscapes(downloads: Downloads, splits: tuple[str, ...]) -> Plan:
    """Plan Cityscapes; the annotations are polygons or, if the downloads lack polygons, label ids."""
    import_optional('cityscapesscripts')
    plan = Plan(downloads)
    for split in splits:
        start = rf'{split}/[a-z-]+/[a-z-]+_\d{{6}}_\d{{6}}'
        images = index_files(
            downloads, rf'leftImg8bit/{start}_leftImg8bit\.png', '_leftImg8bit.png', f'images of leftImg8bit/{split}'
        )
        files = {
            suffix: downloads.find(rf'gtFine/{start}{re.escape(suffix)}')
            for suffix in ('_gtFine_polygons.json', '_gtFine_labelIds.png')
        }
        suffix = next((suffix for suffix in files if files[suffix]), '_gtFine_polygons.json')
        labels = index_files(downloads, rf'gtFine/{start}{re.escape(suffix)}', suffix, f'annotations of gtFine/{split}')
        plan.add(
            sorted(images),
            images,
            f'leftImg8bit/{split}/{{folder}}/{{name}}_leftImg8bit.png',
            labels,
            _draw_polygons if suffix.endswith('.json') else _convert_ids,
            f'gtFine/{split}/{{folder}}/{{name}}_gtFine_labelTrainIds.png',
        )
    return plan


def _draw_polygons(data, where):
    """Draw polygons as train ids."""
    annotations = import_optional('cityscapesscripts.helpers.annotation')
    draw = import_optional('cityscapesscripts.preparation.json2labelImg').createLabelImage
    annotation, output = annotations.Annotation(), io.StringIO()
    try:
        annotation.fromJsonText(data.decode())
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            return [np.array(draw(annotation, 'trainIds'))]
    except (Exception, SystemExit) as error:  # the library raises many kinds, and ends the process for an unknown label
        reason = output.getvalue().strip() or repr(error)
        raise UserError(f'{where} is no annotation of Cityscapes: {reason}') from None


def _convert_ids(data, where):
    """Replace label ids by train ids."""
    labels = import_optional('cityscapesscripts.helpers.labels').labels
    table = np.full(1 + max(label.id for label in labels), NOT_ALLOWED)
    for label in labels:
        if label.id >= 0:
            table[label.id] = label.trainId
    return [renumber(decode_labels(data, where), table, where).astype(np.uint8)]


CITYSCAPES = Preparation(
    'cityscapes',
    ('cityscapes',),
    plan_cityscapes,
    by_hand=(
        'log in at https://www.cityscapes-dataset.com/downloads and fetch leftImg8bit_trainvaltest.zip (11 GB) and '
        'gtFine_trainvaltest.zip (241 MB)'
    ),
)
