"""The paired bootstrap against a case by hand, a direct loop, and a simulated null; Holm's correction."""

import itertools

import numpy as np
import pytest

from fsa_seg.evaluation.metric import metrics, per_image_counts, sum_confusions
from fsa_seg.evaluation.report import statistics
from fsa_seg.evaluation.report.statistics import (
    Counts,
    gain,
    holm,
    image_counts,
    image_mious,
    miou_draws,
    unlike_images,
)


def counts(intersection, union, label=None):
    intersection, union = (np.array(table, np.int64) for table in (intersection, union))
    names = [f'image{i}' for i in range(len(intersection))]
    return Counts(names, intersection, union, np.array(label if label is not None else union, np.int64))


def random_counts(rng, images=60, classes=5, skill=0.7):
    """Return counts of images that show some of the classes; `skill` is the mean share of a union that is right."""
    union = rng.integers(50, 1000, (images, classes)) * (rng.random((images, classes)) < 0.6)
    right = np.clip(skill + 0.2 * rng.normal(size=(images, classes)), 0, 1)
    return counts(union * right, union)


def test_two_images_by_hand():
    """Of two images a draw takes (0, 0), (0, 1), (1, 0) or (1, 1): three different mIoUs, with weights 1 : 2 : 1.

    Image 0 alone shows class 0: IoU 3/4. Image 1 alone shows both classes, with IoU 1/4 and 1/2.
    """
    both = counts([[3, 0], [1, 2]], [[4, 0], [4, 4]])
    drawn = miou_draws(both, 20_000, 1)
    expected = {75.0: 0.25, 100 * (4 / 8 + 2 / 4) / 2: 0.5, 100 * (1 / 4 + 2 / 4) / 2: 0.25}
    values, numbers = np.unique(drawn.round(6), return_counts=True)
    assert values.tolist() == sorted(expected)
    np.testing.assert_allclose(numbers / len(drawn), [expected[value] for value in values], atol=0.01)


def test_a_class_that_a_draw_does_not_show_is_left_out():
    assert set(miou_draws(counts([[5, 0], [0, 0]], [[10, 0], [0, 10]]), 500, 0).round(6)) == {50.0, 25.0, 0.0}


@pytest.mark.parametrize('block', [7, 60, 10**6])
def test_draws_are_those_of_a_direct_loop(monkeypatch, block):
    monkeypatch.setattr(statistics, 'BLOCK', block * 60)
    rng = np.random.default_rng(3)
    table = random_counts(rng)
    found, generator = miou_draws(table, 100, 5), np.random.default_rng(5)
    for start in range(0, 100, block):
        for number, chosen in enumerate(generator.integers(0, 60, (min(block, 100 - start), 60), np.int32)):
            ious = []
            for label in range(5):
                total = sum(int(table.union[image, label]) for image in chosen)
                if total:
                    ious.append(sum(int(table.intersection[image, label]) for image in chosen) / total)
            assert found[start + number] == pytest.approx(100 * sum(ious) / len(ious), abs=1e-10)


def test_sums_beyond_single_precision_are_exact():
    """The pixels of a class in 3 images exceed 2^24, from where single precision skips whole numbers."""
    large = 2**31 - 1
    table = counts([[large - 1]] * 3, [[large]] * 3)
    assert np.abs(miou_draws(table, 10, 0) - 100 * (large - 1) / large).max() < 1e-13


def test_equal_rows_get_equal_draws():
    """A pair is drawn together: a row against itself has no gain in any draw."""
    table = random_counts(np.random.default_rng(0))
    found = gain(miou_draws(table, 500, 9), miou_draws(table, 500, 9), 0.0)
    assert found == (0.0, 0.0, 0.0, 0.0, 1.0) and found.holds_zero


def test_the_interval_of_equal_rows_holds_zero():
    """Of 20 pairs with one skill about 95 % of the intervals hold 0; of 20 pairs of unlike skill none does."""
    rng, held, unlike = np.random.default_rng(11), 0, 0
    for _ in range(20):
        rows = [random_counts(rng, 200, 5, 0.6) for _ in range(2)]
        better = random_counts(rng, 200, 5, 0.8)
        draws = [miou_draws(row, 2000, 0) for row in (*rows, better)]
        held += gain(draws[0], draws[1], 0.0).holds_zero
        unlike += gain(draws[0], draws[2], 0.0).holds_zero
    assert 17 <= held <= 20 and unlike == 0


def test_the_interval_and_the_share_of_positive_draws():
    before, after = np.zeros(1000), np.arange(-100, 900) / 100
    found = gain(before, after, 4.0)
    assert found.low == pytest.approx(np.quantile(after, 0.025)) and found.high == pytest.approx(
        np.quantile(after, 0.975)
    )
    assert found.positive == pytest.approx(0.899) and found.p == pytest.approx(2 * 102 / 1001) and found.holds_zero


def test_draws_without_a_class_do_not_count():
    found = gain(np.array([1.0, np.nan, 1.0]), np.array([2.0, 3.0, np.nan]), 1.0)
    assert (found.low, found.high, found.positive) == (1, 1, 1)
    assert gain(np.array([np.nan]), np.array([1.0]), 1.0).p == 1


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    for order in itertools.permutations([0.001, 0.02, 0.02, 0.3]):
        assert sorted(holm(order)) == pytest.approx([0.004, 0.06, 0.06, 0.3])


def test_counts_of_a_result_are_those_of_its_confusions():
    rng = np.random.default_rng(2)
    confusions = [np.stack([*rng.integers(0, 4, (2, 9)), rng.integers(1, 50, 9)]) for _ in range(6)]
    confusions = [matrix[:, np.unique(matrix[:2], axis=1, return_index=True)[1]] for matrix in confusions]
    images = [dict(name=f'{i}.jpg', **entry) for i, entry in enumerate(per_image_counts(confusions))]
    table = image_counts(dict(images=images, classes=[{}] * 4))
    total = metrics(sum_confusions(confusions, 4))
    assert statistics.miou(table.intersection.sum(0), table.union.sum(0)) == pytest.approx(total['mIoU'])
    for i, matrix in enumerate(confusions):
        assert image_mious(table)[i] == pytest.approx(metrics(sum_confusions([matrix], 4))['mIoU'])


def test_results_of_other_images_cannot_be_compared():
    table = counts([[1], [2]], [[3], [4]])
    assert unlike_images(table, table) is None
    other = table._replace(images=['image0', 'else'])
    assert 'such as else' in unlike_images(table, other)
    assert 'truth of 1 images, such as image1' in unlike_images(table, counts([[1], [2]], [[3], [4]], [[3], [5]]))
    assert 'classes differ' in unlike_images(table, counts([[1, 0], [2, 0]], [[3, 0], [4, 0]]))
