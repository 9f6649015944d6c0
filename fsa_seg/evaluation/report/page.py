"""The report as one page of HTML, which needs no other file and no network.

Every text of a file or a user passes `plain`, and jinja2 escapes it.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence

import jinja2
from markupsafe import Markup

from fsa_seg import __version__
from fsa_seg.evaluation.report.collect import Found
from fsa_seg.evaluation.report.panels import panel
from fsa_seg.evaluation.report.rows import AVERAGE, Cell, Row, Table
from fsa_seg.evaluation.report.sections import (
    ablation,
    attention,
    gain_in_words,
    gain_kind,
    gains_about,
    gains_plot,
    gains_table,
    provenance_table,
    sources_table,
    unranked_table,
    words,
)
from fsa_seg.evaluation.report.statistics import PERCENT
from fsa_seg.evaluation.report.tables import (
    MARKS,
    NOTHING,
    columns,
    counted,
    figure,
    notes,
    plain,
    signed,
    summary,
    unranked,
)

HERE = os.path.dirname(os.path.abspath(__file__))
TITLE = 'Results of training-free open-vocabulary segmentation'
PANELS = 120  # pairs that the page shows in detail
PAPER_METHODS = ('maskclip', 'sclip', 'clearclip', 'proxyclip')  # of the FSA paper
KINDS = {'reproduced': 'good', 'above': 'above', 'below': 'bad', 'undefined': 'grey', 'not run': 'grey'}


def page(
    found: Found,
    tables: Sequence[Table],
    draws: int,
    data_root: str | None = None,
    most: int = PANELS,
    title: str = TITLE,
    progress: Callable[[list], Iterable] = iter,
) -> str:
    """Return the report as HTML.

    Args:
        found: the results.
        tables: with their gains, see `fsa_seg.evaluation.report.gains.add_gains`.
        draws: of the intervals.
        data_root: folder of all data sets, from which images are drawn.
        most: pairs that are shown in detail; of more pairs, those with the largest gains or losses.
        title: of the page.
        progress: function that shows progress over the pairs in detail, such as `Bar`.
    """
    entries = [_table(table, draws) for table in tables]
    chosen, about = _chosen(tables, most)
    panels = [panel(i, row, pair, data_root) for i, (row, pair) in enumerate(progress(chosen))]
    names = dict.fromkeys(entry['dataset'] for entry in panels)
    script = _read('page.js')
    results = counted(len(found.results), 'result')
    parts = dict(
        about=f'{results}; mIoU in percent; made by fsa_seg {__version__} from result files alone.',
        notes=notes(found, tables),
        tables=entries,
        panels=panels,
        panel_groups=[(name, [entry for entry in panels if entry['dataset'] == name]) for name in names],
        panels_about=about,
        unranked=unranked_table(unranked(found)),
        sources=sources_table(tables),
        provenance=provenance_table(found),
        files=[plain(line) for line in (*found.left_out, *found.duplicates)],
        footer=f'{PERCENT} intervals of {draws:,} draws of the images, the same for both rows of a pair.',
        style=Markup(_read('page.css')),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(f'\n{script}\n'.encode()).digest()).decode(),
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template('page.html').render(title=plain(title), **parts)


def _read(name):
    """Return the text of a file beside this module, without its last line break."""
    with open(os.path.join(HERE, name), encoding='utf-8') as f:
        return f.read().rstrip('\n')


def _table(table, draws):
    """Return a table, its gains and its studies, for the template."""
    names = columns(table)
    title = 'The toy world' if table.worth == 'toy' else 'The table'
    gains = gains_table(table)
    return dict(
        id=f'table-{table.worth}',
        title=title,
        summary=summary(table),
        reference=table.reference,
        referenced=any(cell.references for row in table.rows for cell in row.cells.values()),
        columns=names,
        rows=[_row(row, previous, names) for previous, row in zip([None, *table.rows], table.rows)],
        gains=gains,
        gains_about=gains_about(table, draws) if gains else [],
        plot=gains_plot(table),
        studies=[*attention(table), *ablation(table), *words(table)],
    )


def _row(row: Row, previous: Row | None, names):
    """Return a row for the template; `backbone` is set where another backbone begins."""
    method, backbone, vfm, settings = map(plain, row.name)
    return dict(
        name=method,
        settings=', '.join(part for part in (vfm, settings) if part != NOTHING),
        backbone=backbone if previous is None or plain(previous.name[1]) != backbone else None,
        cells=[_cell(row.cells.get(name), row) for name in names],
    )


def _cell(cell: Cell | None, row: Row):
    """Return a cell for the template; None for an empty cell."""
    if cell is None or cell.value is None and not cell.references:
        return None
    about = dict(value=figure(cell.value), reference=None, remark=None, gain=None)
    if cell.references:
        best = cell.reference
        others = ''.join(
            f'; also {figure(other.value, 2)} ({other.comparable}: {other.source})' for other in cell.references[1:]
        )
        about.update(
            reference=f'{figure(best.value)} {signed(cell.difference, 2)}'
            if cell.value is not None
            else figure(best.value),
            source=plain(f'{best.comparable}: {best.source}{others}'),
            mark=MARKS[cell.verdict] if cell.verdict else None,
            verdict=cell.verdict,
            kind=KINDS[cell.verdict] if cell.verdict else '',
        )
    elif cell.remark:
        about.update(remark=plain(cell.remark))
    elif _could_be_published(row.first['cell']) and cell.dataset != AVERAGE:
        about.update(remark='no published figure')
    if cell.pair and cell.pair.gain:
        pair = cell.pair
        about.update(gain=signed(pair.gain.value), gain_kind=gain_kind(pair), gain_about=gain_in_words(pair))
    elif cell.pair and cell.pair.problem:
        about.update(gain='no gain', gain_kind='grey', gain_about=plain(cell.pair.problem))
    return about


def _could_be_published(cell):
    """Return whether a cell's row stands in the FSA paper, so that the page says where its figure is not published."""
    usual = cell['words'] == cell['protocol'] and not (cell['changed'] or cell['toy'])
    return usual and cell['method'] in PAPER_METHODS and cell['feedback'] == 'fsa'


def _chosen(tables, most):
    """Return the pairs that are shown in detail, with their rows, and a line on the others."""
    pairs = [item for table in tables for item in table.pairs if item[1].gain]
    if len(pairs) <= most:
        return pairs, ''
    largest = sorted(pairs, key=lambda item: -abs(item[1].gain.value))[:most]
    return largest, f'The {most} largest gains and losses of {len(pairs)}; --details N shows more.'
