"""The sections of the page beside its main table: gains, studies, sources, provenance."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from fsa_seg.evaluation.report import plots
from fsa_seg.evaluation.report.collect import WORTHS, Found, Light, worth
from fsa_seg.evaluation.report.published import DATASETS
from fsa_seg.evaluation.report.rows import AVERAGE, EXPECTED, Pair, Table
from fsa_seg.evaluation.report.statistics import ALPHA, OUTSIDE, PERCENT
from fsa_seg.evaluation.report.studies import attention_maps, setting_curves, words_rows
from fsa_seg.evaluation.report.tables import NOTHING, counted, figure, models_and_settings, plain, row_label, signed

PLOTTED = 60  # gains in one plot
CURVES = 8  # curves in one plot
FEW = 50  # images below which an interval is rough
VERSIONS = ('python', 'torch', 'open_clip_torch', 'timm', 'onedl-mmsegmentation')  # of the provenance


class Value(NamedTuple):
    """A value of a table: its text, its class of style, and what it is sorted by (None: the text)."""

    text: str
    kind: str = ''
    sort: float | None = None


class Simple(NamedTuple):
    """A table of texts; the first value of a row names it."""

    label: str
    head: list[str]
    rows: list[list[Value]]
    sortable: bool = True


def gain_kind(pair: Pair) -> str:
    """Return the class of style of a gain."""
    return 'grey' if pair.gain.holds_zero else 'good' if pair.gain.value > 0 else 'bad'


def gain_in_words(pair: Pair, digits: int = 2) -> str:
    """Return a gain, its interval, and how often it is positive."""
    gain = pair.gain
    return (
        f'{signed(gain.value, digits)}, interval {signed(gain.low, digits)} to {signed(gain.high, digits)}, '
        f'positive in {100 * gain.positive:.1f} % of the draws'
    )


def gains_table(table: Table) -> Simple | None:
    """Return the table of gains; None without a pair."""
    rows = []
    for row, pair in [*table.pairs, *((row, row.cells[AVERAGE].pair) for row in table.rows if row.cells[AVERAGE].pair)]:
        head = [Value(row_label(row)), Value(pair.after.dataset, 'text')]
        remark = Value(plain('; '.join(filter(None, (pair.problem, pair.note, _rough(row, pair))))), 'text')
        if pair.gain is None:
            rows.append([*head, *[Value(NOTHING)] * 5, remark])
            continue
        gain, kind = pair.gain, gain_kind(pair)
        corrected = Value(NOTHING) if pair.corrected is None else Value(_p(pair.corrected), '', pair.corrected)
        rows.append(
            [
                *head,
                Value(signed(gain.value, 2), kind, gain.value),
                Value(f'{signed(gain.low, 2)} to {signed(gain.high, 2)}', kind, gain.low),
                Value(f'{100 * gain.positive:.1f} %', '', gain.positive),
                Value(_p(gain.p), '', gain.p),
                corrected,
                remark,
            ]
        )
    head = ['row', 'data set', 'gain', f'{PERCENT} interval', 'positive', 'p', "p, Holm's", 'remark']
    return (
        Simple('Gains over the row without feedback under the same protocol, in percent points', head, rows)
        if rows
        else None
    )


def _p(value):
    """Return a p-value with four digits."""
    return f'{value:.4f}' if value >= 0.00005 else '<0.0001'


def _rough(row, pair):
    """Return a remark on an interval that is not to be trusted, of few images or beside its gain; None without one."""
    if pair.gain is None:
        return None
    cells = [row.cells[name] for name in DATASETS] if pair.after.result is None else [pair.after]
    count = min(cell.result['flat']['images'] for cell in cells)
    few = f'{counted(count, "image")}: too few for a good interval' if count < FEW else None
    return few or (OUTSIDE if pair.gain.outside else None)


def gains_about(table: Table, draws: int) -> list[str]:
    """Return how to read the gains, in words."""
    judged = [pair for _, pair in table.pairs if pair.gain]
    if not judged:
        return ['No pair has an interval; the table says why.']
    real = sum(pair.corrected < ALPHA for pair in judged)
    apart = sum(not pair.gain.holds_zero for pair in judged)
    lines = [
        f'{apart} of {len(judged)} gains have an interval that does not hold 0. An interval comes from draws of the '
        'images with replacement. Both rows of a pair get the same draws. Each draw sums the pixels of its images, and '
        'divides; a class that a draw does not show is left out of its mean.',
        f"Of {len(judged)} gains tested at once, some look real by chance. Holm's correction makes each p-value larger "
        f'for the number of gains. {real} of {len(judged)} have a corrected p below {ALPHA:g}: for all of these '
        f'together, the risk that one is chance is at most {100 * ALPHA:.0f} %.',
    ]
    least = 2 / (draws + 1)
    if least * len(judged) > ALPHA:
        lines.append(
            f'With {draws:,} draws no p is below {least:.2g}, so that no gain of {len(judged)} can pass the '
            f'correction: --draws {int(2 * len(judged) / ALPHA) + 1} would be enough.'
        )
    alone = sorted(
        {
            row_label(row)
            for row in table.rows
            if row.first['cell']['feedback']
            and row.baseline is None
            and not any(cell.pair for cell in row.cells.values())
        }
    )
    if alone:
        lines.append(
            f'{counted(len(alone), "row")} with feedback, such as {alone[0]}, without a row of the bare method under '
            'the same protocol: run it with --no-fsa and the same --protocol.'
        )
    return lines


def gains_plot(table: Table) -> Markup | None:
    """Return the plot of a table's gains: of all pairs, or of the averages where there are too many; None without."""
    pairs = [(f'{row_label(row)}: {pair.after.dataset}', pair) for row, pair in table.pairs if pair.gain]
    if len(pairs) > PLOTTED:
        averages = [(row_label(row), row.cells[AVERAGE].pair) for row in table.rows]
        pairs = [(name, pair) for name, pair in averages if pair][:PLOTTED]
    if not pairs:
        return None
    entries = [(name, pair.gain.value, pair.gain.low, pair.gain.high) for name, pair in pairs]
    return Markup(plots.gains_plot(entries, 'Gains with their intervals; the table below has the numbers'))


def ablation(table: Table) -> list[dict[str, Any]]:
    """Return the curves of settings."""
    found = setting_curves(table)
    if not found:
        return []
    drawn, captions = [], []
    for key, series in found.items():
        drawn.append(Markup(plots.curves(key, series[:CURVES], f'mIoU against {key}')))
        captions.append(f'{len(series)} curves, {CURVES} drawn' if len(series) > CURVES else '')
    rows = [
        [
            Value(plain(key)),
            Value(plain(curve.name), 'text'),
            Value('; '.join(f'{x:g}: {y:.2f}' for x, y in curve.points), 'text'),
        ]
        for key, series in found.items()
        for curve in series
    ]
    about = 'Results that differ in one setting alone.'
    table = Simple('mIoU by the value of a setting', ['setting', 'results', 'value: mIoU'], rows)
    return [dict(title='One setting at a time', about=about, plots=drawn, captions=captions, table=table)]


def attention(table: Table) -> list[dict[str, Any]]:
    """Return the heat maps of attention configurations."""
    maps = attention_maps(table)
    drawn = [
        Markup(
            plots.figures_heat_map(
                entry.values, entry.rows, entry.columns, f'mIoU by attention map and backbone, {entry.title}'
            )
        )
        for entry in maps
    ]
    if not maps:
        return []
    rows = [
        [
            Value(f'{plain(name)}, {plain(entry.title)}'),
            Value(plain(column), 'text'),
            Value(figure(value, 2), '', float(value)),
        ]
        for entry in maps
        for name, values in zip(entry.rows, entry.values)
        for column, value in zip(entry.columns, values)
        if value == value
    ]
    table = Simple('mIoU by attention map and backbone', ['attention map', 'backbone', 'mIoU'], rows)
    return [
        dict(
            title='Attention configurations',
            about='',
            plots=drawn,
            captions=[plain(entry.title) for entry in maps],
            table=table,
        )
    ]


def words(table: Table) -> list[dict[str, Any]]:
    """Return what the choice of class words is worth."""
    found = words_rows(table)
    if not found:
        return []
    rows = [
        [
            Value(plain(entry.row)),
            Value(entry.dataset, 'text'),
            Value('; '.join(f'{plain(name)} {value:.2f}' for name, value in entry.figures), 'text'),
            Value(figure(entry.spread, 2), '', entry.spread),
        ]
        for entry in found
    ]
    table = Simple('mIoU by class words', ['row', 'data set', 'words: mIoU', 'best less worst'], rows)
    about = (
        f'Results that differ in the class words alone. The choice of words moves mIoU by up to {found[0].spread:.1f} '
        f'points ({plain(found[0].row)} on {found[0].dataset}).'
    )
    return [dict(title='What the words are worth', about=about, plots=[], captions=[], table=table)]


def unranked_table(results: Sequence[Light]) -> Simple:
    """Return the table of results that enter no table."""
    rows = [
        [
            Value(plain(result['flat']['row'])),
            Value(plain(models_and_settings(result['cell'])), 'text'),
            Value(plain(result['cell']['dataset']), 'text'),
            Value(WORTHS[worth(result)], 'text'),
            Value(str(result['flat']['images'])),
            Value(figure(result['metrics']['mIoU'], 2)),
            Value(plain(result['path']), 'text'),
        ]
        for result in results
    ]
    head = ['row', 'settings', 'data set', 'worth', 'images', 'mIoU', 'file']
    return Simple('Results that enter no table', head, rows)


def sources_table(tables: Sequence[Table]) -> Simple | None:
    """Return the table of the published figures that this page shows; None without one."""
    rows = {}
    for table in tables:
        for row in table.rows:
            for cell in row.cells.values():
                for best in cell.references:
                    if best.comparable != EXPECTED:
                        key = (row_label(row), best.comparable, plain(best.variant), plain(best.source))
                        rows.setdefault(key, []).append(f'{cell.dataset} {best.value:g}')
    entries = [
        [Value(key[0]), *(Value(text, 'text') for text in (key[1], key[2] or NOTHING, ', '.join(figures), key[3]))]
        for key, figures in rows.items()
    ]
    head = ['row', 'comparable', 'variant', 'figures', 'source']
    return (
        Simple('Published figures: of released code, of a paper, or of unknown settings', head, entries)
        if rows
        else None
    )


def provenance_table(found: Found) -> Simple:
    """Return the table of where each number comes from."""
    rows = []
    for result in found.results:
        entries = {entry[0]: entry[1] for entry in result['fingerprint']}
        versions = [f'{name} {entries[f"version of {name}"]}' for name in VERSIONS if f'version of {name}' in entries]
        cell = result['cell']
        texts = [
            cell['dataset'],
            models_and_settings(cell),
            WORTHS[worth(result)].split(':')[0],
            result['hash'][:10],
            str(entries.get('package'))[:10],
            ', '.join(versions),
            f'{result["device"]}, {entries.get("model.precision")}',
        ]
        rows.append(
            [
                Value(plain(result['flat']['row'])),
                *(Value(plain(text), 'text') for text in texts),
                Value(f'{result["seconds"]:.1f}', '', result['seconds']),
                Value(figure(result['metrics']['mIoU'], 4), '', result['metrics']['mIoU']),
                Value(plain(result['path']), 'text'),
            ]
        )
    head = ['row', 'data set', 'settings', 'worth', 'fingerprint', 'code', 'versions', 'device']
    return Simple('Where each number comes from', [*head, 'seconds', 'mIoU', 'file'], rows)
