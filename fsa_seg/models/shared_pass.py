"""One pass, many methods: windows go through trunk and VFMs in batches, once for all the segmentors that look at them.

Shape legend: B windows, N patches, Q queries; images (3, height, width), each of its own size.
"""

import collections
import itertools
import json

import torch
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

from fsa_seg.errors import UserError
from fsa_seg.models.window import LastBlock
from fsa_seg.ops.windows import OverlapAdd, cut_window, windows

STAGES = ("CLIP's trunk", 'the VFM', 'the last block (attention, FSA, readout)')
SHARED_KEYS = (
    'backbone',
    'precision',
    'window',
    'stride',
    'window_batch',
    'compile',
    'text_cache',
)  # by a panel's members


@MODELS.register_module()
class Panel(BaseSegmentor):
    """Several segmentors of one backbone and one choice of windows, in one pass; at equal `window_batch` each gives what it
    gives alone.

    Trunk and each VFM run once for a window, and members that differ in their feedback alone share the last block under
    their method's own map. `predict` puts the labels of member i into the field `label_field(i)` of a data sample.

    Args:
        members (list of dict): configs of `fsa_seg.models.segmentor.TrainingFreeSegmentor`, alike in SHARED_KEYS.

    Raises:
        ValueError: members that differ in one of SHARED_KEYS.
    """

    def __init__(self, members):
        for key in SHARED_KEYS:
            if len({json.dumps(member.get(key), sort_keys=True) for member in members}) > 1:
                raise ValueError(f'the members of a panel differ in {key}')
        models = {}
        members = [MODELS.build(dict(member, models=models)) for member in members]
        super().__init__(data_preprocessor=members[0].data_preprocessor)
        self.members = nn.ModuleList(members)
        self.eval()

    def predict(self, inputs, data_samples=None):
        """Return data samples with one field of labels (1, height, width) int64 for each member.

        Args: as of `TrainingFreeSegmentor.predict`.
        """
        samples = data_samples or [SegDataSample() for _ in inputs]
        for sample, cosines in zip(samples, overlap_adds(self.members, inputs, original_sizes(inputs, samples))):
            for i, (member, own) in enumerate(zip(self.members, cosines)):
                sample.set_field(PixelData(data=member.labels(own)[0][None]), label_field(i), PixelData)
                sample.set_field(own.finite, finite_field(label_field(i)), torch.Tensor)
        return samples

    def loss(self, inputs, data_samples):
        """Raise: the segmentors are training-free."""
        return self.members[0].loss(inputs, data_samples)

    def _forward(self, inputs, data_samples=None):
        raise NotImplementedError('use predict')

    extract_feat = encode_decode = _forward


def label_field(member):
    """Return the field of a data sample that holds the labels of a panel's member (int)."""
    return f'pred_sem_seg_{member}'


def finite_field(labels):
    """Return the field of a data sample that says whether the stages behind a field of labels gave finite numbers."""
    return labels.replace(label_field('')[:-1], 'finite')


def original_sizes(images, samples):
    """Return the (height, width) of each image before it was resized; where a data sample does not tell, its own."""
    return [sample.metainfo.get('ori_shape', image.shape[1:])[:2] for image, sample in zip(images, samples)]


@torch.no_grad()
def overlap_adds(segmentors, images, sizes):
    """Yield for each image, in order, the complete `OverlapAdd` of each segmentor, as soon as its last window is done.

    Windows go in batches of `window_batch`, across the images.

    Args:
        segmentors (sequence): that share trunk, window and stride.
        images (list of (3, height, width)): normalised.
        sizes (list of (int, int)): height and width of each result.
    """
    first, adds = segmentors[0], {}
    jobs = [
        (i, *one) for i, image in enumerate(images) for one in windows(*image.shape[1:], first.window, first.stride)
    ]

    def run(batch, adds):
        for i, _, _ in batch:
            if i not in adds:
                adds[i] = [
                    OverlapAdd(images[i].shape[1:], s.window, s.stride, s.multiple, sizes[i]) for s in segmentors
                ]
        for member, cosines, grid, finite in window_cosines(segmentors, [(images[i], *one) for i, *one in batch]):
            for (i, rows, columns), window, flags in zip(batch, cosines, finite):
                adds[i][member].add(rows, columns, window, grid, flags)
        return adds

    left = collections.Counter(i for i, _, _ in jobs)
    most = first.batch_size(lambda: run([max(jobs, key=_size)], {}))
    for batch in _batches(jobs, most):
        run(batch, adds)
        left.subtract(i for i, _, _ in batch)
        for i in [i for i in adds if not left[i]]:
            yield adds.pop(i)


def window_cosines(segmentors, crops):
    """Yield (index of a segmentor, cosines (B, N, Q), grid, flags) of windows of one size: trunk and VFMs run once each.

    The flags (B, 3) bool say which of STAGES gave finite numbers; they stay on the device, so that it is not waited for.

    Args:
        segmentors (sequence): that share the trunk.
        crops (list of (image (3, height, width), (top, bottom), (left, right))): the windows, in pixels.
    """
    groups, cut, tokens, features, fine = {}, {}, {}, {}, {}
    for i, s in enumerate(segmentors):  # those that share the last block, but for their feedback
        groups.setdefault((s.vfm, s.multiple, *s.method.values(), s.queries), []).append(i)
    for group in groups.values():
        s = segmentors[group[0]]
        if s.multiple not in cut:
            cut[s.multiple] = torch.cat([cut_window(*crop, s.multiple) for crop in crops])
        images = cut[s.multiple]
        size = images.shape[2:]  # it tells the padding, and so what is in the images
        if size not in tokens:
            tokens[size] = segmentors[0].trunk(s.visual, images)
            fine[size] = _finite(tokens[size][0])
        if (s.vfm, size) not in features:
            features[s.vfm, size] = s.features(images)
            fine[s.vfm, size] = fine[size] if s.vfm is None else _finite(features[s.vfm, size])
        block = LastBlock(s.visual, *tokens[size], s.text, s.method, features[s.vfm, size])
        for i in group:
            last = []
            for cosines in block.rounds(segmentors[i].feedback):
                last.append(_finite(cosines))
            yield i, cosines, block.grid, torch.stack([fine[size], fine[s.vfm, size], torch.stack(last).all(0)], 1)


def _finite(values):
    """Return for each of a batch whether all its values are finite, (B,) bool."""
    return values.isfinite().flatten(1).all(1)


def check_finite_stages(flags, image, settings):
    """Raise a UserError that names the first stage whose numbers are not finite.

    Args:
        flags (3): bool, of `window_cosines`, of all windows of an image.
        image (str): name of the image.
        settings (str): what the segmentor ran under, such as 'SCLIP + FSA, fp16'.
    """
    wrong = [stage for stage, fine in zip(STAGES, flags.tolist()) if not fine]
    if wrong:
        raise UserError(
            f'{image}: {wrong[0]} under {settings} gave numbers that are not finite (NaN or infinite), so that there are '
            'no labels. In half precision use --precision fp32 or bf16; else look at the weights (tools/weights.py check) '
            'and at settings far from the published ones'
        )


def _batches(jobs, most):
    """Yield consecutive windows of one size, at most so many at once."""
    for _, alike in itertools.groupby(jobs, _size):
        alike = list(alike)
        yield from (alike[start : start + most] for start in range(0, len(alike), most))


def _size(job):
    return [end - start for start, end in job[1:]]
