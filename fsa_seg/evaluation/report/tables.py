"""The tables of a report as Markdown, CSV and LaTeX.

Texts that come from files or users, such as the names of rows, are escaped for each format.
"""

import csv
import io
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from fsa_seg.evaluation.report.collect import WORTHS, Found, Light, worth
from fsa_seg.evaluation.report.published import DATASETS
from fsa_seg.evaluation.report.rows import AVERAGE, EXPECTED, Cell, Pair, Row, Table
from fsa_seg.evaluation.report.statistics import ALPHA, PERCENT
from fsa_seg.evaluation.results import COMPONENTS, FIGURES, settings_text, toy_note
from fsa_seg.system.markdown import markdown_table

HEAD = ('method', 'backbone', 'VFM', 'protocol')
MARKS = {'reproduced': '✓', 'above': '▲', 'below': '▼', 'undefined': 'undefined', 'not run': 'not run'}
NOTHING = '–'
CSV_KEYS = (  # what stands beside a figure, in the first columns of the table
    'table row',
    'worth',
    'reference',
    'reference comparable',
    'reference source',
    'difference',
    'verdict',
    'remark',
    'baseline',
    'gain',
    'gain low',
    'gain high',
    'gain positive',
    'p',
    'p corrected',
    'pair',
)
FIRST_KEYS = (*COMPONENTS, 'changed', *FIGURES)
HIDDEN = ('Cc', 'Cs', 'Cn', 'Co')  # categories of characters
DIRECTIONS = '\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069'
FORMULA = ('=', '+', '-', '@')  # beginnings of a text that a spreadsheet runs
TEX_SPECIAL = {
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    '–': '--',
    '…': r'\ldots{}',
    '×': r'$\times$',
    '<': r'$<$',
    '>': r'$>$',
    '|': r'$|$',
    **{char: f'\\{char}' for char in '&%$#_{}'},
}


def plain(text: object) -> str:
    """Return a text as one line, without characters that control a terminal or a line's direction, or break XML."""
    line = ' '.join(str(text).split())
    return ''.join(char for char in line if unicodedata.category(char) not in HIDDEN and char not in DIRECTIONS)


def markdown_text(text: object) -> str:
    """Return a text in which Markdown and HTML find no markup; '_' within a word is none."""
    text = re.sub(r'([\\`*\[\]~$])', r'\\\1', plain(text)).replace('|', '\\|')
    text = re.sub(r'(?<!\w)_|_(?!\w)', r'\\_', text)
    return text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')


def tex_text(text: object) -> str:
    """Return a text in which LaTeX finds no command."""
    return ''.join(TEX_SPECIAL.get(char, char) for char in plain(text))


def figure(value: float | None, digits: int = 1) -> str:
    """Return a figure with its digits, or a dash."""
    return NOTHING if value is None or math.isnan(value) else f'{value:.{digits}f}'


def signed(value: float | None, digits: int = 1) -> str:
    """Return a figure with its sign, or a dash; what rounds to 0 has no minus."""
    if value is None or math.isnan(value):
        return NOTHING
    text = f'{value:+.{digits}f}'
    return text.replace('-', '−') if float(text) else text.replace('-', '+')


def columns(table: Table) -> list[str]:
    """Return a table's columns of figures: data sets, with the average behind the paper's eight."""
    eight = [name for name in table.datasets if name in DATASETS]
    return [*eight, *([AVERAGE] if eight else []), *(name for name in table.datasets if name not in eight)]


def summary(table: Table) -> str:
    """Return one line: how many figures are reproduced, above, below and not run, and the largest difference."""
    judged = [(row, cell) for row, cell in table.cells() if cell.verdict]
    if not judged and not table.absent:
        return 'No cell of this table has a published figure of released code, so that no verdict is due.'
    counts = {name: sum(cell.verdict == name for _, cell in judged) for name in MARKS}
    counts['not run'] += len(table.absent)
    run = [(row, cell) for row, cell in judged if cell.difference is not None]
    of = 'expected numbers' if table.reference == EXPECTED else 'figures of released code'
    within = f' (within {judged[0][1].tolerance:g})' if judged else ''
    line = f'{counts["reproduced"]} of {len(run)} {of} reproduced{within}'
    line += ''.join(f', {counts[name]} {name}' for name in ('above', 'below', 'undefined', 'not run') if counts[name])
    if not run:
        return line + '.'
    row, cell = max(run, key=lambda item: abs(item[1].difference))
    return f'{line}; largest difference {signed(cell.difference, 2)} ({row_label(row)}, {cell.dataset}).'


def row_label(row: Row) -> str:
    """Return a row's name in one text: 'ProxyCLIP + FSA, clip_vit-b16, dino_vit-b8, fsa'."""
    return ', '.join(part for part in map(plain, row.name) if part != NOTHING)


def models_and_settings(cell: Mapping[str, Any]) -> str:
    """Return what stands beside a cell's row and data set: 'clip_vit-b16, dino_vit-b8, fsa, words names'."""
    seed = cell.get('random_weights')
    parts = [cell['backbone'], cell['vfm'], settings_text(cell), '' if seed is None else f'seed {seed}']
    return ', '.join(filter(None, parts))


def counted(number: int, thing: str) -> str:
    """Return '1 result' or '2 results'."""
    return f'{number:,} {thing}' + ('' if number == 1 else 's')


def notes(found: Found, tables: Sequence[Table]) -> list[str]:
    """Return the lines that stand above all tables: what the results are worth, and what was left out."""
    lines = list(dict.fromkeys(filter(None, (toy_note(result['cell']) for result in found.results))))
    if len(tables) > 1:
        lines.append('The folders mix complete results and results of the toy world: each has a table of its own.')
    for kind in ('partial', 'random'):
        count = sum(worth(result) == kind for result in found.results)
        if count:
            lines.append(f'{counted(count, "result")} of {WORTHS[kind]}: in no table, but listed behind the tables.')
    if found.duplicates:
        lines.append(
            f'{counted(len(found.duplicates), "file")} not used, as another has the cell. {found.duplicates[0]}'
        )
    if found.left_out:
        lines.append(f'{counted(len(found.left_out), "file")} left out. {found.left_out[0]}')
    return lines


def unranked(found: Found) -> list[Light]:
    """Return the results that enter no table: partial ones and those of random weights."""
    return [result for result in found.results if worth(result) in ('partial', 'random')]


def gain_text(pair: Pair | None, digits: int = 1) -> str:
    """Return a pair's gain with its interval, a star where Holm's corrected p is below ALPHA; or why there is none."""
    if pair is None:
        return NOTHING
    if pair.gain is None:
        return pair.problem or NOTHING
    gain = pair.gain
    doubt = ' ?' if gain.outside else ''
    star = '*' if pair.corrected is not None and pair.corrected < ALPHA else ''
    return f'{signed(gain.value, digits)}{star} [{signed(gain.low, digits)}, {signed(gain.high, digits)}]{doubt}'


def markdown(found: Found, tables: Sequence[Table]) -> str:
    """Return the tables as Markdown: figures with the published ones, then the gains with their intervals."""
    parts = ['# Report', *(f'**{markdown_text(line)}**' for line in notes(found, tables))]
    for table in tables:
        parts += [f'## {markdown_text(WORTHS[table.worth]).capitalize()}', markdown_text(summary(table))]
        parts += [*_markdown_figures(table), *_markdown_gains(table)]
    rows = [
        (
            result['flat']['row'],
            models_and_settings(result['cell']),
            result['cell']['dataset'],
            WORTHS[worth(result)],
            figure(result['metrics']['mIoU'], 2),
            result['path'],
        )
        for result in unranked(found)
    ]
    if rows:
        head = ['row', 'settings', 'data set', 'worth', 'mIoU', 'file']
        parts += ['## In no table', markdown_table(head, [map(markdown_text, row) for row in rows])]
    parts += [f'- {markdown_text(line)}' for line in [*found.left_out, *found.duplicates]]
    return '\n\n'.join(parts) + '\n'


def _markdown_figures(table):
    """Return the parts of Markdown with a table's figures."""
    names = columns(table)
    rows = [
        [*map(markdown_text, row.name), *(_with_reference(row.cells.get(name)) for name in names)] for row in table.rows
    ]
    return [
        f'mIoU in percent; in brackets the {table.reference} figure and the verdict: ✓ reproduced, ▲ above, ▼ below.',
        _markdown_columns(names, rows),
    ]


def _markdown_gains(table):
    """Return the parts of Markdown with a table's gains; none without a pair."""
    names = columns(table)
    rows = [
        [*map(markdown_text, row.name), *(markdown_text(gain_text(_pair_of(row, name))) for name in names)]
        for row in table.rows
        if any(_pair_of(row, name) for name in names)
    ]
    about = (
        f'Gains over the row without feedback under the same protocol, with their {PERCENT} intervals; * real after '
        "Holm's correction over this table; ? the gain lies outside of its interval, as draws lack rare classes."
    )
    return [about, _markdown_columns(names, rows)] if rows else []


def _markdown_columns(names, rows):
    """Return a table of Markdown with columns of figures."""
    shown = [markdown_text(name) for name in names]
    return markdown_table([*HEAD, *shown], rows, right=shown)


def csv_text(found: Found, tables: Sequence[Table]) -> str:
    """Return all results and all cells that were not run as CSV: a row each, unrounded, settings as columns."""
    rows = []
    for table in tables:
        for row, cell in table.cells():
            flat = cell.result['flat'] if cell.result else _flat_of_absent(row, cell)
            rows.append({**flat, **_beside(table, row, cell)})
    rows += [dict(result['flat'], worth=worth(result)) for result in unranked(found)]
    keys = list(dict.fromkeys([*FIRST_KEYS, *CSV_KEYS, *sorted({key for row in rows for key in row})]))
    out = io.StringIO()
    writer = csv.DictWriter(out, keys, lineterminator='\n')
    writer.writeheader()
    writer.writerows({key: _csv_value(value) for key, value in row.items()} for row in rows)
    return out.getvalue()


def tex(found: Found, tables: Sequence[Table]) -> str:
    """Return the tables as LaTeX, for the package booktabs."""
    parts = ['% \\usepackage{booktabs}']
    for line in notes(found, tables):
        parts.append(f'% {plain(line)}')
    for table in tables:
        names = columns(table)
        lines = [
            r'\begin{table}',
            r'\centering',
            rf'\caption{{mIoU in percent, {tex_text(WORTHS[table.worth])}; in brackets the {table.reference} figure.}}',
            rf'\begin{{tabular}}{{llll{"r" * len(names)}}}',
            r'\toprule',
            ' & '.join(map(tex_text, [*HEAD, *names])) + r' \\',
        ]
        backbone = None
        for row in table.rows:
            if row.name[1] != backbone:
                backbone = row.name[1]
                lines.append(r'\midrule')
            values = [tex_text(_with_reference(row.cells.get(name), marks=False)) for name in names]
            lines.append('{}' + ' & '.join([*map(tex_text, row.name), *values]) + r' \\')  # a name may begin with [
        parts.append('\n'.join([*lines, r'\bottomrule', r'\end{tabular}', r'\end{table}']))
    return '\n\n'.join(parts) + '\n'


def _with_reference(cell: Cell | None, marks=True):
    """Return a cell's figure, with the published one in brackets."""
    if cell is None or cell.value is None and not cell.references:
        return NOTHING
    if not cell.references:
        return figure(cell.value)
    mark = f' {MARKS[cell.verdict]}' if marks and cell.verdict and cell.verdict != 'not run' else ''
    return f'{figure(cell.value)} ({figure(cell.reference.value)}{mark})'


def _pair_of(row, name):
    """Return the pair of a row's cell, or None."""
    return row.cells[name].pair if name in row.cells else None


def _beside(table, row, cell):
    """Return what stands beside a figure, for CSV."""
    values = {
        'table row': ' | '.join(row.name),
        'worth': table.worth,
        'difference': cell.difference,
        'verdict': cell.verdict,
        'remark': cell.remark,
    }
    if cell.references:
        best = cell.reference
        values.update(
            {'reference': best.value, 'reference comparable': best.comparable, 'reference source': best.source}
        )
    if cell.pair:
        values.update({'baseline': cell.pair.before.result['path'], 'pair': cell.pair.problem or cell.pair.note})
    if cell.pair and cell.pair.gain:
        gain = cell.pair.gain
        values.update(
            {
                'gain': gain.value,
                'gain low': gain.low,
                'gain high': gain.high,
                'gain positive': gain.positive,
                'p': gain.p,
            }
        )
        values['p corrected'] = cell.pair.corrected
    return values


def _flat_of_absent(row, cell):
    """Return the names of a cell that was not run, for CSV."""
    names = row.first['cell']
    return dict({key: names.get(key) for key in COMPONENTS}, dataset=cell.dataset, row=row.name[0])


def _csv_value(value):
    """Return a value for CSV; a text is one line, and no formula."""
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.startswith(FORMULA) else text
