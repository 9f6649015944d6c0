"""Sliding windows, and from cosines to labels.

Shape legend: Q queries, K classes; height and width in pixels.
"""
import torch
import torch.nn.functional as F

BACKGROUND = 0  # the class of pixels whose best score is below `prob_thd`, and the one that `area_thd` leaves out


def window_boxes(height, width, window, stride):
    """Return the windows (top, left, bottom, right) in pixels that cover an image, row by row.

    Windows start at multiples of the stride; the last row and column are shifted inside; an image smaller than the
    window is one window of its own size.

    >>> window_boxes(336, 448, 336, 112)
    [(0, 0, 336, 336), (0, 112, 336, 448)]
    """
    def starts(side):
        count = max(0, -(-(side - window) // stride)) + 1
        return [max(0, min(i * stride, side - window)) for i in range(count)]

    return [(top, left, min(top + window, height), min(left + window, width))
            for top in starts(height) for left in starts(width)]


def slide(image, window_cosines, window, stride, multiple=(1, 1)):
    """Return the cosines of an image's pixels: (Q, height, width) float32, the mean over the windows that cover each.

    A window whose sides are not multiples of `multiple` is padded with zeros, split evenly, and its cosines are
    cropped back.

    Args:
        image (3, height, width): normalised.
        window_cosines: function of images (1, 3, h', w') -> cosines (1, N, Q) and their grid.
        window (int), stride (int): in pixels.
        multiple (int, int): what a window's height and width have to be multiples of.
    """
    height, width = image.shape[1:]
    total = count = None
    for top, left, bottom, right in window_boxes(height, width, window, stride):
        crop, (pad_top, pad_left) = _pad(image[None, :, top:bottom, left:right], multiple)
        cosines, grid = window_cosines(crop)
        cosines = cosines.float().transpose(1, 2).unflatten(2, grid)
        cosines = F.interpolate(cosines, crop.shape[2:], mode='bilinear', align_corners=False)[0]
        cosines = cosines[:, pad_top:pad_top + bottom - top, pad_left:pad_left + right - left]
        if total is None:
            total = cosines.new_zeros(len(cosines), height, width)
            count = cosines.new_zeros(height, width)
        total[:, top:bottom, left:right] += cosines
        count[top:bottom, left:right] += 1
    return total.div_(count)


def class_scores(cosines, words_per_class, logit_scale, size):
    """Return the scores of the classes at original size, (K, height, width): softmax over queries, best of a class.

    Args:
        cosines (Q, h, w): queries of one class side by side, in class order; resized bilinearly to `size`.
        words_per_class (list of int): how many queries each class has.
        logit_scale (float): factor on the cosines before the softmax.
        size (int, int): height and width of the original image.
    """
    cosines = F.interpolate(cosines[None], tuple(size), mode='bilinear', align_corners=False)[0]
    probs = cosines.mul_(logit_scale).softmax(0)
    if len(words_per_class) == len(probs):
        return probs
    return torch.stack([queries.amax(0) for queries in probs.split(list(words_per_class))])


def label_map(scores, prob_thd=0.0, area_thd=None):
    """Return the label of each pixel, (height, width) int64.

    Args:
        scores (K, height, width): at original size; not changed.
        prob_thd (float): a pixel whose best score is under it becomes class 0.
        area_thd (float): acts first: a foreground class whose share of all foreground pixels is at most this gives
            its pixels to their next-best class. None switches it off.
    """
    if area_thd is not None:
        areas = scores.argmax(0).flatten().bincount(minlength=len(scores))
        foreground = areas.clone()
        foreground[BACKGROUND] = 0
        small = areas <= area_thd * foreground.sum()
        small[BACKGROUND] = False
        scores = scores.masked_fill(small[:, None, None], 0)
    best, labels = scores.max(0)
    return labels.masked_fill_(best < prob_thd, BACKGROUND)


def _pad(images, multiple):
    """Pad images with zeros, split evenly, to sides that are multiples; also return the rows and columns before."""
    rows, columns = (-side % m for side, m in zip(images.shape[2:], multiple))
    padded = F.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return padded, (rows // 2, columns // 2)
