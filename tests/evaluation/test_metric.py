import json
from collections import Counter

import numpy as np
import pytest
import torch

import fsa_seg.evaluation.metric as metric_module
from fsa_seg.errors import StopError, UserError
from fsa_seg.evaluation.metric import (
    ExactIoUMetric,
    Journal,
    _occurring,
    _runs,
    confusion,
    metrics,
    per_image_counts,
    sum_confusions,
)
from fsa_seg.ops.device import count_labels
from fsa_seg.profiling.measured import tensor_peak

TRUTH = torch.tensor([[0, 0, 1], [1, 255, 2]])
PREDICTED = torch.tensor([[0, 1, 1], [1, 0, 0]])


def test_metrics_by_hand():
    """Class 0: 1 of 3; class 1: 2 of 3; class 2: 0 of 1; class 3 is absent and left out."""
    total = sum_confusions([confusion(TRUTH, PREDICTED, 4)], 4)
    assert total.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    figures = metrics(total)
    assert figures['IoU'][:3] == pytest.approx([100 / 3, 200 / 3, 0]) and np.isnan(figures['IoU'][3])
    assert figures['mIoU'] == pytest.approx(100 / 3)
    assert figures['mAcc'] == pytest.approx((50 + 100 + 0) / 3)
    assert figures['aAcc'] == pytest.approx(60)


def test_counts_beyond_float32():
    big = np.array([[0], [0], [2**24 + 1]])
    assert sum_confusions([big, np.array([[0], [0], [1]])], 1).tolist() == [[2**24 + 2]]


def test_per_image_counts():
    assert per_image_counts([confusion(TRUTH, PREDICTED, 4)]) == [
        dict(classes=[0, 1, 2], intersection=[1, 2, 0], label=[2, 2, 1], union=[3, 3, 1])
    ]


@pytest.mark.parametrize('classes', [3, 5, 30, 400])
def test_counts_of_many_classes_are_sparse(classes, monkeypatch):
    """Sorted pixels, a table of all pairs, and a count pixel by pixel give the same."""
    torch.manual_seed(0)
    truth, predicted = torch.randint(classes, (12, 13)), torch.randint(classes, (12, 13))
    truth[:3, :5], predicted[4:, 4:] = 255, truth[4:, 4:].clamp(max=classes - 1)
    valid = truth != (ignored := 255 if classes < 255 else 7)
    expected = sorted(Counter(zip(truth[valid].tolist(), predicted[valid].tolist())).items())
    tables = []
    monkeypatch.setattr(
        metric_module, 'count_labels', lambda labels, count: tables.append(count) or count_labels(labels, count)
    )
    counts = confusion(truth, predicted, classes, ignored)
    assert [((t, p), n) for t, p, n in counts.T.tolist()] == expected and counts.dtype == np.int64
    assert tables == ([(classes + 1) ** 2 + 1] if classes <= 5 else [])
    pairs = truth.clamp(max=classes - 1).flatten() * (classes + 1) + predicted.flatten()
    runs, table = _runs(pairs.sort().values, (classes + 1) ** 2), _occurring(count_labels(pairs, (classes + 1) ** 2))
    assert all(torch.equal(*pair) for pair in zip(runs, table))
    with pytest.raises(ValueError, match=f'truth has labels .{classes}.'):
        confusion(torch.full((12, 13), classes), predicted, classes, ignored)
    with pytest.raises(ValueError, match='prediction has other labels'):
        confusion(predicted, torch.full((12, 13), classes), classes, ignored)


def test_memory_of_an_images_counts_does_not_grow_with_the_pairs_of_classes():
    labels = torch.zeros(20, 30, dtype=torch.int64)
    few, many = (tensor_peak(lambda: confusion(labels, labels, classes, 65535), 'cpu') for classes in (100, 5000))
    assert many <= few < 100 * labels.numel()


def test_the_log_has_the_first_classes_of_many(monkeypatch):
    shown = []
    monkeypatch.setattr(metric_module, 'print_log', lambda text, *_: shown.append(text))
    for count in (4, 1000):
        metric = ExactIoUMetric()
        metric.dataset_meta = dict(classes=[f'thing {i}' for i in range(count)])
        metric.process({}, [sample('a', TRUTH, PREDICTED)])
        metric.evaluate(1)
    assert len(shown[0].splitlines()) == 5 and len(shown[1].splitlines()) == 202
    assert shown[1].endswith('and 800 more classes, which the result file has')


@pytest.mark.parametrize(
    'truth, predicted, message',
    [
        (torch.tensor([4]), torch.tensor([0]), r'truth has labels \[4\]'),
        (torch.tensor([0]), torch.tensor([-1]), 'prediction has other labels, but the data set has the classes 0 to 3'),
        (torch.tensor([0, 1]), torch.tensor([0]), 'truth has'),
    ],
)
def test_labels_out_of_range(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        confusion(truth, predicted, 4)


def sample(name, truth, predicted):
    return dict(
        img_path=f'{name}.jpg',
        seg_map_path=f'{name}.png',
        gt_sem_seg=dict(data=truth[None]),
        pred_sem_seg=dict(data=predicted[None]),
    )


def build(**arguments):
    metric = ExactIoUMetric(**arguments)
    metric.dataset_meta = dict(classes=('a', 'b', 'c', 'd'))
    return metric


def test_an_image_counts_once_and_agrees_with_mmseg():
    from mmseg.evaluation import IoUMetric

    torch.manual_seed(0)
    samples = [sample(f'{i}', torch.randint(4, (5, 6)), torch.randint(4, (5, 6))) for i in range(3)]
    exact, mmsegs = build(), IoUMetric()
    mmsegs.dataset_meta = exact.dataset_meta
    exact.process({}, samples + samples[:1])
    mmsegs.process({}, samples)
    figures, expected = exact.evaluate(3), mmsegs.evaluate(3)
    for key in ('mIoU', 'mAcc', 'aAcc'):
        assert figures[key] == pytest.approx(float(expected[key]), abs=0.0051)  # mmseg rounds to two places
    assert exact.images == ['0.jpg', '1.jpg', '2.jpg']


def test_the_file_of_a_wrong_label_is_named():
    with pytest.raises(UserError, match='x.png: the truth has labels'):
        build().process({}, [sample('x', torch.tensor([[9]]), torch.tensor([[0]]))])


def test_a_missing_image_is_an_error():
    metric = build()
    metric.process({}, [sample('x', TRUTH, PREDICTED)])
    with pytest.raises(RuntimeError, match='1 images were evaluated, but the data set has 2'):
        metric.evaluate(2)


def wrong(name):
    return sample(name, TRUTH, PREDICTED[:1])


def test_an_error_of_an_isolated_cell_is_kept_and_ends_its_counts():
    metric = build()
    metric.isolated = True
    for name, image in (('a', sample), ('b', None), ('c', sample)):
        metric.process({}, [image(name, TRUTH, PREDICTED) if image else wrong(name)])
    assert 'b.png: truth has (2, 3) pixels' in str(metric.failure) and [name for name, _ in metric.results] == ['a.jpg']
    metric.settle()
    assert metric.evaluate(3) == {} and metric.images == []


def test_a_full_disk_is_no_failure_of_a_cell(tmp_path):
    metric = journaled(tmp_path / 'file' / 'journal')
    metric.isolated = True
    (tmp_path / 'file').touch()
    with pytest.raises(StopError, match='cannot be written'):
        metric.process({}, [sample('a', TRUTH, PREDICTED)])
    assert metric.failure is None


def test_a_part_and_a_failure_on_another_process_have_no_figures(monkeypatch):
    metric = build()
    metric.part = True
    metric.process({}, [sample('a', TRUTH, PREDICTED)])
    assert metric.evaluate(9) == {} and metric.failure is None
    metric = build()
    metric.process({}, [sample('a', TRUTH, PREDICTED)])
    monkeypatch.setattr(metric_module, 'all_gather_object', lambda own: [own, ([], 'NaN on another process')])
    assert metric.evaluate(1) == {} and str(metric.failure) == 'NaN on another process'


CONTENTS = {'a.jpg': 'one', 'b.jpg': 'two'}


def journaled(folder, cell='cell', contents=CONTENTS):
    metric = build()
    metric.journal = Journal(str(folder), cell, contents)
    return metric


def test_journal(tmp_path):
    """The next run takes over the counts that a run kept; a half-written line is left out."""
    journaled(tmp_path).process({}, [sample('a', TRUTH, PREDICTED), sample('b', TRUTH, TRUTH)])
    (file,) = tmp_path.iterdir()
    lines = file.read_text().splitlines(keepends=True)
    assert [json.loads(line)[0] for line in lines] == ['a.jpg', 'b.jpg']
    file.write_text(lines[0] + lines[1][:10])
    resumed = journaled(tmp_path)
    resumed.done = resumed.journal.read()
    assert list(resumed.done) == ['a.jpg']
    resumed.process({}, [sample('b', TRUTH, TRUTH)])
    uninterrupted = build()
    uninterrupted.process({}, [sample('a', TRUTH, PREDICTED), sample('b', TRUTH, TRUTH)])
    assert sorted(resumed.journal.read()) == ['a.jpg', 'b.jpg']  # the next run reads both files
    assert resumed.evaluate(1) == uninterrupted.evaluate(2)
    assert resumed.images == uninterrupted.images
    resumed.journal.remove()
    assert not tmp_path.exists()


@pytest.mark.parametrize(
    'garble',
    [
        lambda line: line.replace('[[0', '[[1', 1),  # other counts
        lambda line: line.replace('a.jpg', 'b.jpg'),
        lambda line: line.replace('one', 'two'),
        lambda line: line[:-5] + '"]\n',
        lambda line: '[' * 100_000 + '\n',
        lambda line: '{}\n',
        lambda line: 'null\n',
        lambda line: '["a.jpg", "one", [], 5, ""]\n',
        lambda line: '\udcff\x00\n',
        lambda line: line.strip()[:-1] + ', 9]\n',
    ],
)
def test_an_image_whose_line_has_no_right_seal_is_counted_again(tmp_path, garble):
    journaled(tmp_path).process({}, [sample('a', TRUTH, PREDICTED)])
    (file,) = tmp_path.iterdir()
    line = file.read_text()
    file.write_text(garble(line) + line.replace('a.jpg', 'c.jpg'), errors='surrogateescape')
    assert Journal(str(tmp_path), 'cell', CONTENTS).read() == {}
    file.write_text(garble(line) + line, errors='surrogateescape')
    assert list(Journal(str(tmp_path), 'cell', CONTENTS).read()) == ['a.jpg']


def test_kept_counts_are_those_of_the_files_and_the_cell(tmp_path):
    journaled(tmp_path).process({}, [sample('a', TRUTH, PREDICTED), sample('b', TRUTH, TRUTH)])
    assert list(Journal(str(tmp_path), 'cell', {**CONTENTS, 'a.jpg': 'mended'}).read()) == ['b.jpg']
    assert Journal(str(tmp_path), 'other cell', CONTENTS).read() == {}


def test_kept_counts_are_those_of_the_weights(tmp_path):
    """An unknown digest agrees with every digest: the first run may download the file."""
    metric = journaled(tmp_path)
    metric.journal.weights = ['w', None]
    metric.process({}, [sample('a', TRUTH, PREDICTED)])
    for weights, kept in ((['w', None], 1), (['w', 'v'], 1), ([None, None], 1), (['other', None], 0), (['w'], 0)):
        assert len(Journal(str(tmp_path), 'cell', CONTENTS, weights).read()) == kept


def test_images_are_named_below_the_root():
    metric = build(root='/data/mine')
    metric.process({}, [sample('/data/mine/sub/a', TRUTH, PREDICTED)])
    metric.evaluate(1)
    assert metric.images == ['sub/a.jpg']


def test_counts_that_are_read_later_are_the_same(tmp_path, monkeypatch):
    """As on a GPU, where the counts of a step are read at the next step or at the end."""
    steps = [
        [
            dict(
                img_path=f'{i}.jpg',
                seg_map_path=f'{i}.png',
                gt_sem_seg=dict(data=torch.randint(3, (1, 8, 9))),
                pred_sem_seg=dict(data=torch.randint(3, (1, 8, 9))),
            )
            for i in (k, k + 1)
        ]
        for k in (0, 2, 4)
    ]
    counted = []
    for late in (False, True):
        metric = ExactIoUMetric()
        metric.dataset_meta = dict(classes='abc')
        settle = metric._settle
        if late:
            monkeypatch.setattr(
                metric, '_settle', lambda count, metric=metric, settle=settle: settle(max(0, len(metric._pending) - 2))
            )
        for step in steps:
            metric.process(None, step)
        assert len(metric.results) == (4 if late else 6)
        monkeypatch.setattr(metric, '_settle', settle)
        metric.evaluate(6)
        counted.append((metric.images, [counts.tolist() for counts in metric.confusions]))
    assert counted[0] == counted[1]
