"""Region maps: attention inside regions, one class for each region, and soft regions of VFM features.

A region map gives each cell an integer label; cells of one label are one region. Sources of the formulas: CorrCLIP
(ICCV 2025, arXiv 2411.10086) and GramSeg, from whose descriptions in formulas this file was written.

Shape legend: B windows, N = h·w cells, R regions, C feature channels, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.ops.attention import GPU_KEPT_ENTRIES, KEPT_ENTRIES, AttentionMap, by_rows
from fsa_seg.ops.device import count_labels
from fsa_seg.ops.types import pair

EPS = 0.2  # largest distance of two regions that are merged; CorrCLIP's published setting
SCALE = 4.0  # of the similarities before the softmax; CorrCLIP's published setting
MERGED = 10000  # label of the first merged region; CorrCLIP's
TEMPERATURE = 0.07  # GramSeg's
ROUNDS = 2  # GramSeg's: one round on the seeds, one more on the regions' means


def nearest(regions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return region maps on another grid: each cell takes the label at its upper left corner.

    CorrCLIP resizes so (`nearest` of torch), both to the VFM's grid and from there to CLIP's.

    Args:
        regions (B, height, width): labels.
        grid (int, int): (h, w) of the result.
    """
    height, width = regions.shape[1:]
    rows, columns = (
        torch.arange(count, device=regions.device) * side // count for count, side in zip(grid, (height, width))
    )
    return regions[:, rows[:, None], columns]


def region_indices(regions: Tensor) -> tuple[Tensor, Tensor]:
    """Return each cell's region as an index (B, N) int64 from 0, in rising order of labels, and the counts (B,).

    Args:
        regions (B, N): labels, whole numbers.
    """
    ordered, order = regions.sort(1)
    steps = F.pad((ordered.diff(dim=1) != 0).long(), (1, 0)).cumsum(1)
    return torch.empty_like(steps).scatter_(1, order, steps), steps[:, -1] + 1


def merge_regions(features: Tensor, regions: Tensor, eps: float = EPS) -> Tensor:
    """Return the labels (B, N) after regions of similar features are merged, window by window (CorrCLIP).

    1. A region's feature is the mean of its cells' unit features, normalised again.
    2. The region of the smallest label keeps its label and is left out of what follows.
    3. d = max(sim) − sim, sim being the cosines of the other regions, each with itself included.
    4. Regions joined by a chain of d ≤ eps get one label: 10000 + the chain's index, in the order of smallest labels.

    A window of one or two labels stays as it is. Where the smallest label is 10000 or more, merged labels start one
    above that label, so that the two never meet; this is ours.

    Args:
        features (B, C, h, w): VFM features, of any length.
        regions (B, h, w): labels, whole numbers.
        eps (float): see above; at least 0.
    """
    unit, labels = F.normalize(features.float().flatten(2), dim=1), regions.flatten(1)
    index, counts = region_indices(labels)
    count = int(counts.max())
    order = torch.arange(count, device=index.device)
    member = (index[:, None] == order[:, None]).to(unit.dtype)  # (B, R, N)
    mean = F.normalize(member @ unit.transpose(1, 2), dim=2)
    similarity = mean @ mean.transpose(1, 2)
    other = (order > 0) & (order < counts[:, None])
    apart = ~(other[:, :, None] & other[:, None])
    similarity.masked_fill_(apart, float('-inf'))
    joined = similarity.amax((1, 2), keepdim=True) - similarity <= eps
    joined = (joined & ~apart) | torch.eye(count, dtype=torch.bool, device=index.device)
    for _ in range(count.bit_length()):  # chains of twice the length at each step
        reach = joined.to(unit.dtype)
        joined = reach @ reach > 0
    first = joined.long().argmax(2)  # the chain's smallest index
    chain = ((first == order) & other).long().cumsum(1) - 1
    smallest = labels.amin(1, keepdim=True)
    merged = chain.gather(1, first).gather(1, index) + (smallest.long() + 1).clamp(min=MERGED)
    kept = (index == 0) | (counts < 3)[:, None]
    return torch.where(kept, labels, merged.to(labels.dtype))


def scope_map(features: Tensor, regions: Tensor, scale: float = SCALE, block: int | None = None) -> AttentionMap:
    """Return CorrCLIP's attention map: softmax(scale·s) inside each cell's scope, one map for all heads.

    s are the cosines of the features. Cells i and j are in each other's scope if they are of one region. Where i or j
    has the window's smallest label ("unsegmented"), s_ij > mean(s) decides instead, also between two such cells. The
    mean is over all pairs of the window, ‖Σ f‖²/N². Every cell is in its own scope: where all features are alike the
    published formula leaves an unsegmented row empty, and its softmax is no number.

    The map's `scope` gives the allowed pairs, so that a feedback can keep inside them.

    Args:
        features (B, C, h, w): VFM features of any dtype; the map is computed in float32.
        regions (B, N) or (B, h, w): labels, such as those of `merge_regions`.
        scale (float): see above.
        block (int): rows that are held at once, as of `fsa_seg.ops.attention.proxy_map`.
    """
    unit, labels = F.normalize(features.float().flatten(2), dim=1), regions.flatten(1)
    loose = labels == labels.amin(1, keepdim=True)
    mean = unit.mean(2).square().sum(1)[:, None, None]
    count, most = unit.shape[2], KEPT_ENTRIES if unit.device.type == 'cpu' else GPU_KEPT_ENTRIES
    held = block or (count if len(unit) * count**2 <= most else None)
    whole: list[Tensor] = []  # all allowed pairs, where they are held

    def similarities(span: slice) -> Tensor:
        return unit[:, :, span].transpose(1, 2) @ unit

    def allowed(span: slice, similarity: Tensor) -> Tensor:
        if whole:
            return whole[0][:, span]
        same = labels[:, span, None] == labels[:, None]
        pairs = torch.where(loose[:, span, None] | loose[:, None], similarity > mean, same)
        pairs.diagonal(span.start or 0, 1, 2).fill_(True)
        if held == count == pairs.shape[1]:
            whole.append(pairs)
        return pairs

    def scope(span: slice) -> Tensor:
        return whole[0][:, span] if whole else allowed(span, similarities(span))

    def rows(span: slice, factor: float = 1.0, bias: Tensor | None = None) -> Tensor:
        similarity = similarities(span)
        forbidden = ~allowed(span, similarity)
        similarity.mul_(scale * factor)
        if bias is not None:
            similarity.add_(bias[:, span])
        return similarity.masked_fill_(forbidden, float('-inf')).softmax(-1)

    def attention(factor: float = 1.0, bias: Tensor | None = None) -> AttentionMap:
        operator = by_rows(lambda span: rows(span, factor, bias), unit.transpose(1, 2), held)
        return AttentionMap(lambda values: operator(values)[0], 1.0, False, True, pair(features.shape[2:]), scope=scope)

    return attention()._replace(with_logits=attention)


def correct_labels(labels: Tensor, regions: Tensor) -> Tensor:
    """Return a label map in which each region has its most frequent class; of equals, the smallest (CorrCLIP).

    The region of the smallest label, which stands for what is not segmented, keeps its classes.

    Args:
        labels (height, width): int64 classes, from 0 to K − 1.
        regions (height, width): labels of regions, whole numbers.
    """
    values, index = regions.unique(return_inverse=True)
    classes = int(labels.max()) + 1
    counts = count_labels(index * classes + labels, len(values) * classes).unflatten(0, (len(values), classes))
    modes = (counts * classes - torch.arange(classes, device=labels.device)).argmax(1)  # no two classes are equal
    return torch.where(index == 0, labels, modes[index])


def feature_regions(features: Tensor, seeds: int, rounds: int = ROUNDS, temperature: float = TEMPERATURE) -> Tensor:
    """Return soft regions of VFM features, P (seeds, N) float32, whose columns sum to 1 (GramSeg).

    1. The first seed is the feature farthest from the mean's direction; each further one is farthest from all seeds
       so far, by cosine.
    2. P = softmax over seeds of cosine / temperature.
    3. In each further round the seeds are the means of all features, weighted by P, and P is made anew.

    Of two features as far, the first is taken. There are N seeds at most.

    Args:
        features (C, N): VFM features; their lengths weigh in step 3.
        seeds (int): number of seeds, at least 1.
        rounds (int): how often P is made, at least 1.
        temperature (float): see above; above 0.
    """
    features = features.float()
    unit = F.normalize(features, dim=0)
    index = (F.normalize(features.mean(1), dim=0) @ unit).argmin()
    chosen = [index]
    closest = unit.index_select(1, index[None])[:, 0] @ unit
    for _ in range(min(seeds, features.shape[1]) - 1):
        index = closest.argmin()
        chosen.append(index)
        closest = torch.maximum(closest, unit.index_select(1, index[None])[:, 0] @ unit)
    means = unit[:, torch.stack(chosen)]
    soft = (means.T @ unit).div_(temperature).softmax(0)
    for _ in range(rounds - 1):
        means = F.normalize(features @ soft.T, dim=0)
        soft = (means.T @ unit).div_(temperature).softmax(0)
    return soft
