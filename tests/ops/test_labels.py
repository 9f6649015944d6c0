import pytest
import torch

from fsa_seg.ops.labels import class_scores, label_map, label_tiles


def test_scores_by_hand():
    """Three queries, the first two of one class: softmax over all three, then the better of the first two."""
    cosines = torch.tensor([2.0, 1.0, 0.0]).log1p()[:, None, None]  # exp: 3, 2, 1
    scores = class_scores(cosines, [2, 1], 1.0)
    torch.testing.assert_close(scores.flatten(), torch.tensor([3 / 6, 1 / 6]))


def test_prob_thd():
    scores = torch.tensor([[0.1, 0.3], [0.6, 0.35], [0.3, 0.35]])[:, None]
    assert label_map(scores).tolist() == [[1, 1]]
    assert label_map(scores, prob_thd=0.4).tolist() == [[1, 0]]
    assert label_map(scores, prob_thd=0.6).tolist() == [[1, 0]]  # at the threshold it stays


def test_area_thd_acts_before_prob_thd():
    """Ten pixels: 1 of class 1, 4 of class 2, 5 background. Shares of the foreground: 1/5 and 4/5."""
    scores = torch.zeros(3, 1, 10)
    scores[1, 0, 0], scores[2, 0, 1:5], scores[0, 0, 5:] = 0.9, 0.9, 0.9
    scores[2, 0, 0], scores[0, 0, 0] = 0.5, 0.1
    before = scores.clone()
    assert label_map(scores, area_thd=0.1).tolist() == [[1, 2, 2, 2, 2, 0, 0, 0, 0, 0]]
    assert label_map(scores, area_thd=0.2).tolist() == [[2, 2, 2, 2, 2, 0, 0, 0, 0, 0]]  # at most: its next-best class
    assert label_map(scores, prob_thd=0.6, area_thd=0.2).tolist() == [[0, 2, 2, 2, 2, 0, 0, 0, 0, 0]]
    assert label_map(scores, area_thd=1.0).tolist() == [[0] * 10]  # the background is never left out
    assert torch.equal(scores, before)


@pytest.mark.parametrize('area_thd', [None, 0.05, 0.3])
@pytest.mark.parametrize('block', [1, 4, 9, 50])
def test_labels_tile_by_tile(block, area_thd):
    """Areas are of the whole image, whatever the tile: by hand, a class that is small in all but not in its tile."""
    torch.manual_seed(0)
    scores = torch.rand(5, 9, 7)
    scores[4, :1] = 2  # a ninth of the image, but all of the first rows
    expected = scores
    if area_thd is not None:
        areas = scores.argmax(0).flatten().bincount(minlength=5)
        small = areas / areas[1:].sum() <= area_thd
        small[0] = False
        expected = scores * ~small[:, None, None]
    best, labels = expected.max(0)
    labels = torch.where(best < 0.6, 0, labels)
    tiles = [
        ((slice(top, top + block), slice(left, left + 3)), scores[:, top : top + block, left : left + 3])
        for left in range(0, 7, 3)
        for top in range(0, 9, block)
    ]
    assert torch.equal(label_tiles(lambda: iter(tiles), (9, 7), 0.6, area_thd), labels)
    assert torch.equal(label_map(scores, 0.6, area_thd), labels)
