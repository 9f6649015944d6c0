"""The preparation of every data set, by the name that fsa-seg prepare takes."""

from fsa_seg.datasets.prepare.ade20k import ADE20K, ADE20K847
from fsa_seg.datasets.prepare.cityscapes import CITYSCAPES
from fsa_seg.datasets.prepare.coco import COCO, COCO_STUFF10K
from fsa_seg.datasets.prepare.context import CONTEXT, CONTEXT459
from fsa_seg.datasets.prepare.voc import VOC

PREPARATIONS = dict(
    voc=VOC,
    context=CONTEXT,
    coco=COCO,
    cityscapes=CITYSCAPES,
    ade20k=ADE20K,
    context459=CONTEXT459,
    ade20k847=ADE20K847,
    coco_stuff10k=COCO_STUFF10K,
)
