"""The report over made-up results: rows, verdicts, pairs, studies, files that are no results, escaped texts."""

import contextlib
import csv
import html.parser
import io
import json
import os
import re
import shutil

import numpy as np
import pytest

from fsa_seg.config.fingerprint import Entry, cell_hash
from fsa_seg.errors import UserError
from fsa_seg.evaluation.report import gains
from fsa_seg.evaluation.report.collect import find_results, heavy, light, worth
from fsa_seg.evaluation.report.gains import add_gains, details
from fsa_seg.evaluation.report.page import page
from fsa_seg.evaluation.report.published import DATASETS
from fsa_seg.evaluation.report.rows import AVERAGE, make_tables
from fsa_seg.evaluation.report.studies import attention_maps, setting_curves, words_rows
from fsa_seg.evaluation.report.tables import csv_text, markdown, markdown_text, plain, signed, summary, tex, tex_text

from made_results import NASTY, make_results

DRAWS = 200
ONE = dict(backbones=['clip_vit-b16'], dataset=['voc21'], method=['sclip'], protocol=['own'])
OWN = 'voc21_sclip_clip_vit-b16_sclip'  # beginning of a file's name


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """All eight data sets on one backbone, in a folder."""
    folder = tmp_path_factory.mktemp('made')
    make_results(folder, images=8, backbones=['clip_vit-b16'])
    return folder


@pytest.fixture(scope='module')
def varied(tmp_path_factory):
    """One data set: FSA's settings, words, and class names that break a careless page."""
    folder = tmp_path_factory.mktemp('varied')
    settings = [dict(lam=1.0), dict(lam=6.0), dict(p=0.2)]
    make_results(
        folder,
        images=6,
        backbones=['clip_vit-b16'],
        dataset=['voc21'],
        method=['proxyclip', 'sclip'],
        settings=settings,
        words=('mine | <b>',),
        class_names=NASTY,
    )
    return folder


@pytest.fixture(scope='module')
def tables(made):
    found = find_results([str(made)])
    made_tables = make_tables(found.results)
    add_gains(made_tables, DRAWS)
    return found, made_tables


def edit(path, change, target=None):
    """Change the JSON of a result file in place, or write it to `target`; the hash follows its fingerprint."""
    result = json.loads(path.read_text())
    change(result)
    with contextlib.suppress(TypeError):
        result['hash'] = cell_hash([Entry(*entry) for entry in result['fingerprint']])
    (target or path).write_text(json.dumps(result))
    return target or path


def copied(made, tmp_path, *parts):
    """Copy the results whose file names begin with `parts` to an empty folder, and return their paths."""
    paths = [path for path in sorted(made.iterdir()) if path.name.startswith(parts)]
    for path in paths:
        shutil.copy(path, tmp_path)
    return [tmp_path / path.name for path in paths]


def rows_by_name(table):
    return {(row.name[0], row.name[3]): row for row in table.rows}


def test_rows_stand_in_the_papers_order(tables):
    (table,) = tables[1]
    assert table.worth == 'full' and table.datasets == list(DATASETS)
    names = [row.name[0] for row in table.rows]
    assert names == [
        *('MaskCLIP', 'MaskCLIP + FSA', 'SCLIP', 'SCLIP + FSA', 'ClearCLIP', 'ClearCLIP + FSA'),
        *('ProxyCLIP', 'ProxyCLIP', 'ProxyCLIP + FSA'),
    ]


def test_every_verdict_occurs_and_is_right(tables):
    (table,) = tables[1]
    seen = set()
    for row, cell in table.cells():
        judged = cell.reference is not None and cell.reference.comparable == 'code'
        assert (cell.verdict is not None) == judged, (row.name, cell.dataset)
        if judged and cell.value is None:
            assert cell.verdict == 'not run' and cell.result is None
        elif judged:
            close = abs(cell.value - cell.reference.value) <= 0.7 + 1e-6
            assert cell.verdict == ('reproduced' if close else 'above' if cell.difference > 0 else 'below')
        seen.add(cell.verdict)
    assert seen == {None, 'reproduced', 'above', 'below', 'not run'}
    counts = [sum(cell.verdict == name for _, cell in table.cells()) for name in ('reproduced', 'above', 'below')]
    assert summary(table).startswith(f'{counts[0]} of {sum(counts)} figures of released code reproduced (within 0.7)')


def test_no_other_protocol_has_the_published_figure(tables):
    """ProxyCLIP's figures were published under its own protocol; under FSA's they have no verdict."""
    rows = rows_by_name(tables[1][0])
    assert all(cell.verdict for name, cell in rows['ProxyCLIP', 'proxyclip'].cells.items() if name != AVERAGE)
    assert not any(cell.references for cell in rows['ProxyCLIP', 'fsa'].cells.values())


def test_other_settings_under_a_shipped_name_have_no_published_figure(made, tmp_path):
    """A user's own file may be called as the protocol that ships; weights and precision may differ."""
    (path,) = copied(made, tmp_path, OWN)

    def change(**values):
        def change_entries(result):
            for entry in result['fingerprint']:
                entry[1] = values.get(entry[0].split('.')[-1], entry[1])

        edit(path, change_entries)
        ((_, cell),) = (item for item in make_tables([light(str(path))])[0].cells() if item[1].result)
        return cell

    assert change(weights=dict(sha256='0'), precision='fp16').verdict and change().remark is None
    cell = change(stride=56)
    assert cell.references == [] and cell.remark == 'other settings than the published: model.stride'


def test_pairs_are_of_one_protocol(tables):
    (table,) = tables[1]
    paired = 0
    for row in table.rows:
        for name, cell in row.cells.items():
            if name == AVERAGE or cell.result is None:
                continue
            baseline = rows_by_name(table).get((row.name[0].removesuffix(' + FSA'), row.name[3]))
            expected = baseline.cells.get(name) if row.name[0].endswith('FSA') else None
            assert (cell.pair is not None) == (expected is not None and expected.result is not None)
            if cell.pair:
                paired += 1
                assert cell.pair.before is expected and cell.pair.gain.value == cell.value - expected.value
    assert paired > 25


def test_equal_settings_under_another_protocols_name_are_no_pair(made, tmp_path):
    """On VOC20 the protocols `proxyclip` and `fsa` agree, and so do the fingerprints; the rows of the table do not."""
    copied(made, tmp_path, 'voc20_proxyclip_clip_vit-b16_dino_vit-b8_proxyclip', 'voc20_proxyclip+fsa')
    (table,) = make_tables(find_results([str(tmp_path)]).results)
    assert len(table.rows) == 2 and table.pairs == []


def test_an_average_needs_all_eight(tables):
    (table,) = tables[1]
    for row in table.rows:
        values = [row.cells[name].value if name in row.cells else None for name in DATASETS]
        average = row.cells[AVERAGE]
        assert average.value == (None if None in values else pytest.approx(np.mean(values)))
    complete = [row for row in table.rows if row.cells[AVERAGE].value is not None]
    assert complete and any(row.cells[AVERAGE].pair and row.cells[AVERAGE].pair.gain for row in complete)


def test_holms_correction_is_over_the_table(tables):
    pairs = [pair for _, pair in tables[1][0].pairs]
    least = min(pairs, key=lambda pair: pair.gain.p)
    assert least.corrected == pytest.approx(min(1, least.gain.p * len(pairs)))
    assert all(pair.corrected >= pair.gain.p for pair in pairs)


def test_details_add_up(tables):
    found = [(pair, details(pair)) for _, pair in tables[1][0].pairs]
    pair, parts = next(item for item in found if (item[1].gains > 0).any() and (item[1].gains < 0).any())
    for entry, before, after in zip(parts.classes, *(cell.result['classes'] for cell in (pair.before, pair.after))):
        assert (entry.name, entry.before, entry.after) == (after['name'], before['IoU'], after['IoU'])
    helped = parts.moved(1)
    assert helped == sorted(helped, key=lambda entry: -entry.gain) and all(entry.gain > 0 for entry in helped)
    totals = [matrix.sum(1) for matrix in parts.matrices]
    assert all(np.all(np.isclose(total, 100) | (total == 0)) for total in totals)
    assert len(parts.gains) == len(parts.images) == 8
    (best,), (worst,) = parts.extreme(1), parts.extreme(-1)
    assert best[1] == np.nanmax(parts.gains) and worst[1] == np.nanmin(parts.gains)
    confusions = [heavy(cell.result['path']).confusion for cell in (pair.before, pair.after)]
    change = np.abs(confusions[1] - confusions[0])
    np.fill_diagonal(change, 0)
    names = [entry.name for entry in parts.classes]
    first = np.unravel_index(change.argmax(), change.shape)
    assert (parts.confusions[0].truth, parts.confusions[0].predicted) == tuple(names[i] for i in first)


def test_results_of_other_images_have_no_gain(made, tmp_path):
    paths = copied(made, tmp_path, 'voc21_sclip')

    def other_bytes(result):
        for entry in result['fingerprint']:
            entry[1] = 'other' if entry[0] == 'data.contents' else entry[1]

    edit(paths[0], other_bytes)
    (table,) = make_tables(find_results([str(tmp_path)]).results)
    add_gains([table], DRAWS)
    ((_, pair),) = table.pairs
    assert pair.gain is None and pair.problem == 'the images differ in their bytes'
    edit(paths[0], lambda result: result['images'][0].update(name='other.jpg'))
    add_gains([table], DRAWS)
    assert pair.gain is None and 'the images differ: 2 of them are in one result alone' in pair.problem
    edit(paths[0], lambda result: result.update(images=result['images'][::-1]))
    edit(paths[1], lambda result: result['images'][0].update(name='other.jpg'))
    add_gains([table], DRAWS)
    assert pair.problem == 'the images stand in another order, or more than once'


def test_one_image_has_no_interval(tmp_path):
    make_results(tmp_path, images=1, **ONE)
    found = find_results([str(tmp_path)])
    made_tables = make_tables(found.results)
    add_gains(made_tables, DRAWS)
    assert [pair.problem for _, pair in made_tables[0].pairs] == ['an interval needs at least 2 images']
    assert 'at least 2 images' in page(found, made_tables, DRAWS) and '2 images' in markdown(found, made_tables)


def test_classes_without_a_pixel_and_an_undefined_figure(made, tmp_path):
    def empty(result):
        result['metrics'] = dict.fromkeys(result['metrics'])
        result['classes'] = [dict(entry, IoU=None, Acc=None) for entry in result['classes']]
        result['images'] = [dict(image, classes=[], intersection=[], union=[], label=[]) for image in result['images']]
        result['confusion'] = dict(truth=[], predicted=[], pixels=[])

    for path in copied(made, tmp_path, 'voc21_sclip+fsa'):
        edit(path, empty)
    copied(made, tmp_path, OWN)
    found = find_results([str(tmp_path)])
    made_tables = make_tables(found.results)
    add_gains(made_tables, DRAWS)
    assert [pair.problem for _, pair in made_tables[0].pairs] == ['mIoU is undefined: no class has a pixel']
    assert all(text(found, made_tables) for text in (markdown, csv_text, tex)) and page(found, made_tables, DRAWS)


@pytest.mark.parametrize(
    'content, message',
    [
        (lambda text: text[: len(text) // 2], 'is not a result of this suite'),
        (lambda text: '[1, 2]', 'is not a result of this suite'),
        (lambda text: '', 'is not a result of this suite'),
        (lambda text: text.replace('"schema": 2', '"schema": 1'), 'is a result of schema 1'),
        (lambda text: text.replace('"intersection": [', '"intersection": [7, '), 'damaged'),
        (lambda text: text.replace('"classes": [{', '"classes": [7, {', 1), 'damaged'),
        (lambda text: text.replace('"device": "made up"', '"device": 7'), 'device or hash'),
        (lambda text: text.replace('"truth": [', '"truth": [99, '), 'the confusion matrix'),
        (lambda text: '{"cells": {}}', 'is not a result of this suite'),
    ],
)
def test_a_file_that_is_no_result_is_named(made, tmp_path, content, message):
    first, second = copied(made, tmp_path, 'voc21_sclip')
    first.write_text(content(first.read_text()))
    found = find_results([str(tmp_path)])
    assert [result['path'] for result in found.results] == [str(second)]
    assert len(found.left_out) == 1 and str(first) in found.left_out[0] and message in found.left_out[0]
    assert 'run its cell again' in found.left_out[0]
    with pytest.raises(UserError, match='no result.*\n.*' + re.escape(first.name)):
        find_results([str(first)])


def test_places_without_a_result(tmp_path):
    with pytest.raises(UserError, match='no result; give the work_dir'):
        find_results([str(tmp_path)])
    with pytest.raises(UserError, match='nowhere does not exist'):
        find_results([str(tmp_path / 'nowhere')])


def test_duplicates_are_told(made, tmp_path):
    first, second = (tmp_path / name for name in ('a', 'b'))
    for seed, folder in enumerate((first, second)):
        make_results(folder, images=8, seed=seed, **ONE)
    shutil.copy(next(first.iterdir()), first / 'z.json')
    found = find_results([str(first), str(second), str(tmp_path / 'b' / '..' / 'a')])
    assert len(found.results) == 2 and len(found.duplicates) == 3  # one folder under two names is read once
    assert 'with the same figures' in found.duplicates[0] and 'z.json' in found.duplicates[0]
    kept, other = (json.loads(next(folder.glob('*_sclip_*.json')).read_text()) for folder in (first, second))
    values = [result['metrics']['mIoU'] for result in (kept, other)]
    text = next(line for line in found.duplicates if str(values[1]) in line)
    assert 'with other figures' in text
    assert text.index(str(values[0])) < text.index(' is used') < text.index(str(values[1]))


def test_the_same_cell_of_other_code_is_another_row(made, tmp_path):
    (path,) = copied(made, tmp_path, OWN)

    def other_code(result):
        for entry in result['fingerprint']:
            entry[1] = 'other' if entry[0] == 'package' else entry[1]

    edit(path, other_code, tmp_path / 'other.json')
    (table,) = make_tables(find_results([str(tmp_path)]).results)
    assert len(table.rows) == 2 and all('package=' in row.name[3] for row in table.rows)


def test_partial_toy_and_random_results_are_never_mixed(made, tmp_path):
    options = dict(images=4, dataset=['voc21'], method=['sclip'])
    make_results(tmp_path, **options, backbones=['clip_vit-b16'])
    make_results(tmp_path, **options, partial=True, backbones=['clip_vit-b16'])
    make_results(tmp_path, **options, random_weights=0, backbones=['clip_vit-b16'])
    make_results(tmp_path, **options, toy=True)
    found = find_results([str(tmp_path)])
    made_tables = make_tables(found.results)
    add_gains(made_tables, DRAWS)
    assert sorted({worth(result) for result in found.results}) == ['full', 'partial', 'random', 'toy']
    assert [table.worth for table in made_tables] == ['full', 'toy']
    assert {worth(cell.result) for _, cell in made_tables[0].cells() if cell.result} == {'full'}
    text = page(found, made_tables, DRAWS)
    assert text.index('never comparable with published') < text.index('<table')
    assert 'The folders mix complete results and results of the toy world' in text
    assert 'of random weights: in no table' in text and 'of a part of a data set: in no table' in text
    (rows,) = [list(csv.DictReader(io.StringIO(csv_text(found, made_tables))))]
    assert {row['worth'] for row in rows} == {'full', 'partial', 'random', 'toy'}


def test_studies(varied, tmp_path):
    found = find_results([str(varied)])
    (table,) = make_tables(found.results)
    curves = setting_curves(table)
    assert list(curves) == ['feedback.lam', 'feedback.p']
    for curve in curves['feedback.lam']:
        values = [value for value, _ in curve.points]
        assert len(values) > 1 and values == sorted({*values} & {1, 3, 6}) and 'voc21' in curve.name
    rows = words_rows(table)
    assert rows and rows[0].spread == max(row.spread for row in rows)
    for row in rows:
        assert len(row.figures) == 2 and row.figures[0][1] >= row.figures[1][1]
    make_results(tmp_path, 'attention33', images=3, backbones=['clip_vit-b16'])
    (shown,) = attention_maps(make_tables(find_results([str(tmp_path)]).results)[0])
    assert {'qk', 'qq', 'kk', 'vv', 'qq+kk', 'identity', 'proxy (sam_vit-b16)'} <= set(shown.rows)
    assert shown.columns == ['clip_vit-b16', 'clip_vit-b16 + FSA'] and np.isfinite(shown.values).sum() > 15


class Page(html.parser.HTMLParser):
    """What a browser makes of a page: elements, ids, texts; elements that are not closed are an error."""

    VOID = ('meta', 'img', 'link', 'br', 'input', 'hr', 'path', 'use', 'image', 'rect')

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.attributes, self.text = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]
        self.ids += [value for name, value in attributes if name == 'id']
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, f'</{tag}>'

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope='module')
def varied_page(varied):
    found = find_results([str(varied)])
    made_tables = make_tables(found.results)
    add_gains(made_tables, DRAWS)
    return found, made_tables, page(found, made_tables, DRAWS, most=3)


def test_texts_of_files_are_escaped(varied_page):
    """Class names, words and paths with markup come out as text, and open no element."""
    _, _, text = varied_page
    parsed = Page(text)
    assert parsed.open == [] and parsed.tags.count('script') == 1 and 'b' in parsed.tags
    shown = ''.join(parsed.text)
    for name in NASTY[:6]:
        assert plain(name) in shown, name
    assert '<script>alert' not in text and '</script><b>bold' not in text
    assert not [item for item in parsed.attributes if item[1].startswith('on')]


def test_the_page_needs_no_network_and_allows_no_other_script(varied_page):
    _, _, text = varied_page
    parsed = Page(text)
    for tag, name, value in parsed.attributes:
        if name in ('src', 'href', 'xlink:href', 'action', 'data', 'srcset'):
            assert value.startswith(('#', 'data:image/')), (tag, name, value[:40])
    assert not re.search(r'url\((?!#)', text) and '@import' not in text
    (policy,) = [value for _, name, value in parsed.attributes if name == 'content' and 'default-src' in value]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_ids_are_unique_and_labels_lead_somewhere(varied_page):
    parsed = Page(varied_page[2])
    assert len(parsed.ids) == len(set(parsed.ids))
    for _, name, value in parsed.attributes:
        if name in ('aria-labelledby', 'for') or name == 'href' and value.startswith('#'):
            assert value.removeprefix('#') in parsed.ids
    assert parsed.tags.count('caption') == parsed.tags.count('table')


def test_csv_has_every_figure_unrounded(tables):
    found, made_tables = tables
    rows = list(csv.DictReader(io.StringIO(csv_text(found, made_tables))))
    cells = [cell for _, cell in made_tables[0].cells()]
    assert len(rows) == len(cells)
    for row, cell in zip(rows, cells):
        assert row['dataset'] == cell.dataset and row['mIoU'] == ('' if cell.value is None else repr(cell.value))
        assert row['verdict'] == (cell.verdict or '')
        if cell.pair:
            assert float(row['gain']) == cell.pair.gain.value and float(row['p corrected']) == cell.pair.corrected
    assert {row['feedback.terms'] for row in rows} == {'', 'WA+AW+W'}
    assert {'feedback.lam', 'feedback.p', 'window', 'stride', 'hash', 'path', 'device'} <= set(rows[0])


def test_tables_keep_their_columns_whatever_the_names(varied_page):
    found, made_tables, _ = varied_page
    for result in found.results:
        result['cell'] = dict(result['cell'], title='a|b_c $d$ & <script> 100% #1 {x}~^\\ end\nline')
    made_tables = make_tables(found.results)
    add_gains(made_tables, DRAWS)
    for block in markdown(found, made_tables).split('\n\n'):
        lines = [re.sub(r'\\.', '', line) for line in block.split('\n') if line.startswith('|')]
        assert len({line.count('|') for line in lines}) <= 1, block
        assert '<script>' not in block
    text = tex(found, made_tables)
    body = text[text.index('\\toprule') : text.index('\\bottomrule')]
    counts = {len(re.findall(r'(?<!\\)&', line)) for line in body.split('\n') if line.endswith('\\\\')}
    assert len(counts) == 1
    bare = re.sub(r'\\.', '', text)
    assert bare.count('{') == bare.count('}') and '#' not in bare and '_' not in bare


def test_escapes():
    assert tex_text('50% & a_b #1 $x$ {y} \\z') == r'50\% \& a\_b \#1 \$x\$ \{y\} \textbackslash{}z'
    assert markdown_text('a|b *c* _d_ e_f <g>') == r'a\|b \*c\* \_d\_ e_f &lt;g&gt;'
    assert plain('a\nb\x00\x1b[31mc\u2028d') == 'ab[31mc d'.replace('ab', 'a b', 1)
    assert (signed(-0.04), signed(0.04), signed(-1.25), signed(None)) == ('+0.0', '+0.0', '−1.2', '–')


def test_a_result_that_is_changed_is_read_again(made, tmp_path):
    (path,) = copied(made, tmp_path, OWN)
    first = heavy(str(path)).counts.images
    edit(path, lambda result: result['images'].pop())
    assert len(heavy(str(path)).counts.images) == len(first) - 1


def test_light_results_leave_the_counts_in_the_file(made):
    result = light(str(next(made.iterdir())))
    assert not {'images', 'confusion', 'config'} & set(result) and os.path.isfile(result['path'])


def change_entries(path, target=None, level='number', **values):
    """Change the values of entries of a fingerprint by the last part of their key; a new key becomes a new entry."""

    def change(result):
        for entry in result['fingerprint']:
            entry[1] = values.pop(entry[0].split('.')[-1], entry[1])
        result['fingerprint'] += [[key, value, level] for key, value in values.items()]

    return edit(path, change, target)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda result: result['metrics'].update(mIoU=11.0), 'mIoU does not follow from the counts'),
        (lambda result: result['metrics'].update(mIoU=float('nan')), 'mIoU does not follow'),
        (lambda result: result['metrics'].update(mIoU='63.7'), 'mIoU does not follow'),
        (lambda result: result['classes'][0].update(IoU='12'), 'does not follow'),
        (lambda result: result['images'].pop(), 'the counts of the images and the confusion matrix differ'),
        (lambda result: result['images'][0]['union'].__setitem__(0, -5), 'no whole number from 0 on'),
        (lambda result: result['images'][0]['label'].__setitem__(0, 10**30), 'no whole number from 0 on'),
        (lambda result: result['images'][0]['classes'].__setitem__(0, 0.5), 'no whole number from 0 on'),
        (lambda result: result['images'][0]['classes'].__setitem__(1, result['images'][0]['classes'][0]), 'twice'),
        (lambda result: result['confusion']['pixels'].__setitem__(0, 'x'), 'no whole number from 0 on'),
        (lambda result: result.update(seconds='12'), 'seconds'),
        (lambda result: result.pop('config'), 'config'),
        (lambda result: result['cell'].update(vfm=5), 'vfm'),
        (lambda result: result['cell'].update(title=[]), 'title'),
        (lambda result: result['cell'].pop('words'), 'the cell lacks'),
        (lambda result: result['fingerprint'].append([5, 1, 'source']), 'the entry 5 of the fingerprint'),
        (lambda result: result['fingerprint'].append(['a', 1, 5]), 'the entry .a. of the fingerprint'),
    ],
)
def test_figures_must_follow_from_the_counts(made, tmp_path, change, message):
    """A file whose values have other kinds, or whose figures are not those of its counts, is named and left out."""
    (path,) = copied(made, tmp_path, OWN)
    edit(path, change)
    with pytest.raises(UserError, match=f'{path.name} is a damaged result .*{message}'):
        light(str(path))


def test_no_result_takes_anothers_place(made, tmp_path):
    """A digest that a file lacks agrees with every digest: two such files are one cell, and that is said."""
    paths = copied(made, tmp_path, 'voc21_proxyclip+fsa')
    change_entries(paths[0], tmp_path / 'zz.json', 'source', **{'model.vfm.proxy.file': 'abc'})
    found = find_results([str(tmp_path)])
    assert len(found.results) == 1 and 'zz.json is not' in found.duplicates[0]
    edit(tmp_path / 'zz.json', lambda result: result['cell'].update(method='other'))
    found = find_results([str(tmp_path)])  # other names that no row shows
    (table,) = make_tables(found.results)
    assert len(found.results) == len([cell for _, cell in table.cells() if cell.result]) == 2


def test_a_row_stays_together_where_one_data_set_has_two_codes(made, tmp_path):
    """The clash on one data set names the code in all cells of both rows; nothing that ran counts as not run."""
    paths = copied(made, tmp_path, 'voc20_sclip_', 'ade20k_sclip_', OWN)
    change_entries(tmp_path / find(paths, 'voc21'), tmp_path / 'other.json', package='other')
    (table,) = make_tables(find_results([str(tmp_path)]).results)
    by_size = sorted(table.rows, key=lambda row: sum(bool(cell.result) for cell in row.cells.values()))
    assert len(by_size) == 2 and all('package=' in row.name[3] for row in by_size)
    ran = {path.name.split('_')[0] for path in paths}
    for row in table.rows:
        not_run = {name for name, cell in row.cells.items() if cell.verdict == 'not run'}
        assert not not_run & ran and not_run == set(DATASETS) - ran


def find(paths, start):
    return next(path for path in paths if path.name.startswith(start)).name


def test_a_users_own_method_under_a_shipped_name_has_no_published_figure(made, tmp_path):
    (path,) = copied(made, tmp_path, OWN)
    for key, level in (('method file', 'source'), ('class SCLIP', 'source'), ('method.title', 'number')):
        change_entries(path, tmp_path / 'own.json', level, **{key: 'x'})
        (row,) = make_tables([light(str(tmp_path / 'own.json'))])[0].rows
        assert row.cells['voc21'].references == [] and key in row.cells['voc21'].remark
        assert row.cells[AVERAGE].references == [] and not any(cell.judged for cell in row.cells.values())


def test_a_published_method_that_does_not_ship_has_no_verdict(made, tmp_path):
    """published.csv has methods that a user may add; here nobody has."""
    (path,) = copied(made, tmp_path, OWN)
    edit(path, lambda result: result['cell'].update(method='gem', protocol='gem', words='gem', title='GEM'))
    (row,) = make_tables([light(str(path))])[0].rows
    assert row.cells['voc21'].remark == 'other settings than the published: a component does not ship'


def test_no_draw_that_shows_a_class_is_no_gain(made, tmp_path, monkeypatch):
    copied(made, tmp_path, OWN, 'voc21_sclip+fsa')
    (table,) = make_tables(find_results([str(tmp_path)]).results)
    monkeypatch.setattr(gains, 'result_draws', lambda *_: np.full(DRAWS, np.nan))
    add_gains([table], DRAWS)
    ((_, pair),) = table.pairs
    assert pair.gain is None and pair.problem == 'no draw of the images shows a class'


def test_an_undefined_figure_is_not_called_not_run(made, tmp_path):
    (path,) = copied(made, tmp_path, OWN)
    result = light(str(path))
    result['metrics']['mIoU'] = None
    (table,) = make_tables([result])
    assert table.rows[0].cells['voc21'].verdict == 'undefined' and ', 1 undefined' in summary(table)


def test_expected_rows_without_a_result_count_as_not_run(made, tmp_path):
    copied(made, tmp_path, OWN)
    expected = {('SCLIP | clip_vit-b16 | – | sclip', 'voc21'): 1.0, ('CLIP | toy | – | own', 'voc21'): 2.0}
    (table,) = make_tables(find_results([str(tmp_path)]).results, expected, 0.1)
    assert summary(table).startswith('0 of 1 expected numbers reproduced (within 0.1), 1 above, 1 not run')


def test_curves_and_maps_never_mix_code_words_or_precision(varied, tmp_path):
    paths = copied(varied, tmp_path, 'voc21_proxyclip+fsa')
    before = setting_curves(make_tables(find_results([str(tmp_path)]).results)[0])
    for path in paths:
        change_entries(path, tmp_path / f'fp16_{path.name}', precision='fp16')
    after = setting_curves(make_tables(find_results([str(tmp_path)]).results)[0])
    for key, curves in before.items():
        assert len(after[key]) == 2 * len(curves) == len({curve.name for curve in after[key]})
        assert sorted(curve.points for curve in after[key]) == sorted(2 * [curve.points for curve in curves])
    for path in paths[1:]:
        change_entries(path, package='other')
    (table,) = make_tables([light(str(path)) for path in paths])
    points = [point for curve in setting_curves(table).get('feedback.lam', ()) for point in curve.points]
    assert light(str(paths[0]))['metrics']['mIoU'] not in [value for _, value in points]


def test_loaded_weights_that_differ_are_noted(made, tmp_path):
    paths = copied(made, tmp_path, 'voc21_sclip')
    edit(paths[0], lambda result: result['weights'].update(backbone='other'))
    (table,) = make_tables(find_results([str(tmp_path)]).results)
    notes = [pair.note for _, pair in table.pairs]
    assert notes == ['the rows were made by different code or weights (weights of backbone)']


def test_formulas_and_directions_are_texts(made, tmp_path):
    copied(made, tmp_path, OWN)
    found = find_results([str(tmp_path)])
    for result in found.results:
        result['cell']['title'] = '=HYPERLINK("http://x")\u202e'
        result['flat']['row'] = result['cell']['title']
    made_tables = make_tables(found.results)
    (row, *_) = csv.DictReader(io.StringIO(csv_text(found, made_tables)))
    assert row['row'] == '\'=HYPERLINK("http://x")' and '\u202e' not in tex(found, made_tables)
    assert '\n{}=HYPERLINK' in tex(found, made_tables)


def test_names_of_data_sets_and_images_are_escaped_in_markdown(made, tmp_path):
    for path in copied(made, tmp_path, 'voc21_sclip'):
        edit(path, lambda result: result['cell'].update(dataset='v|oc<script>\n\n# x'))
    edit(path, lambda result: result['images'][0].update(name='<script>alert(1)</script>'))
    found = find_results([str(tmp_path)])
    made_tables = make_tables(found.results)
    add_gains(made_tables, DRAWS)
    text = markdown(found, made_tables)
    assert '<script>' not in text and '\n# x' not in text and '&lt;script&gt;alert' in text
