"""Where the gain of one pair comes from, for the page: classes, confusions, images."""

from typing import Any

import numpy as np
from markupsafe import Markup

from fsa_seg.errors import UserError, one_line
from fsa_seg.evaluation.report import plots
from fsa_seg.evaluation.report.examples import draw
from fsa_seg.evaluation.report.gains import Details, details
from fsa_seg.evaluation.report.rows import Pair, Row
from fsa_seg.evaluation.report.sections import Simple, Value, gain_in_words
from fsa_seg.evaluation.report.tables import figure, plain, row_label, signed


def panel(number: int, row: Row, pair: Pair, data_root: str | None) -> dict[str, Any]:
    """Return where the gain of a pair comes from, for the template."""
    parts = details(pair)
    before, after = (figure(cell.value, 2) for cell in (pair.before, pair.after))
    return dict(
        id=f'pair-{number}',
        title=row_label(row),
        dataset=pair.after.dataset,
        gain=f'mIoU {before} without feedback, {after} with it: {gain_in_words(pair)}.',
        moved=[_classes(f'Classes that {verb} most', parts.moved(sign)) for verb, sign in (('gain', 1), ('lose', -1))],
        classes=_classes('IoU of each class in percent', parts.classes, True),
        confusions=_confusions(parts),
        heat_maps=_heat_maps(parts),
        histogram=Markup(plots.histogram(parts.gains, "Histogram of the gains in the images' own mIoU")),
        histogram_caption=_histogram_caption(parts),
        examples=_examples(pair, parts, data_root),
    )


def _classes(label, classes, sortable=False):
    """Return the table of classes with their IoU in both rows."""
    rows = [
        [
            Value(plain(entry.name)),
            *(Value(figure(value, 2), '', value) for value in entry[1:]),
            Value(signed(entry.gain, 2), '' if not entry.gain else 'good' if entry.gain > 0 else 'bad', entry.gain),
        ]
        for entry in classes
    ]
    return Simple(label, ['class', 'without', 'with', 'gain'], rows, sortable)


def _confusions(parts):
    """Return the table of the confusions that changed most."""
    rows = [
        [
            Value(f'{plain(entry.truth)} → {plain(entry.predicted)}'),
            *(Value(f'{value:.1f} %', '', value) for value in (entry.before, entry.after)),
            Value(
                signed(entry.after - entry.before),
                'bad' if entry.after > entry.before else 'good',
                entry.after - entry.before,
            ),
        ]
        for entry in parts.confusions
    ]
    label = "Confusions whose pixels changed most: shares of a class's truth that are called another class"
    return Simple(label, ['truth → called', 'without', 'with', 'change'], rows)


def _heat_maps(parts: Details):
    """Return the heat maps of the row with feedback, and of its change."""
    names = [entry.name for entry in parts.classes]
    before, after = parts.matrices
    better = (after - before) * (2 * np.eye(len(names)) - 1)  # more of the diagonal, less of all else
    return [
        dict(
            svg=Markup(plots.confusion_heat_map(after, names, 'Confusion matrix with feedback')),
            caption='With feedback: shares of the truth (lines) that are called each class; colour is their root.',
        ),
        dict(
            svg=Markup(plots.confusion_heat_map(better, names, 'Change of the confusion matrix', True)),
            caption='The change by feedback: green is better (more on the diagonal, less beside it), red is worse.',
        ),
    ]


def _histogram_caption(parts):
    """Return how many images gain and lose."""
    better, worse = int((parts.gains > 0).sum()), int((parts.gains < 0).sum())
    return (
        f'Of {len(parts.gains)} images {better} gain, {worse} lose; an image alone has few classes, so that its own '
        'mIoU is rough.'
    )


def _examples(pair, parts, data_root):
    """Return the images with the largest gain and loss, drawn, or why they cannot be drawn."""
    examples = []
    for word, sign in (('gain', 1), ('loss', -1)):
        for name, value in parts.extreme(sign):
            caption = f'Largest {word}: {plain(name)}, {signed(value, 1)}'
            try:
                examples.append(
                    dict(
                        address=draw(pair, name, data_root),
                        caption=caption,
                        alt=f'{caption}: image, truth, and the labels of both rows',
                    )
                )
            except Exception as error:  # of a config, a data set or a file of another machine
                why = str(error) if isinstance(error, UserError) else one_line(error)
                examples.append(dict(address=None, caption=f'{caption}. No picture: {plain(why)}', alt=''))
    return examples
