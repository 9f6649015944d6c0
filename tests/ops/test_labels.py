import torch

from fsa_seg.ops.labels import class_scores, label_map


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
