# Trident's published settings with its refinement by SAM (stage E), which the published figures have.
_base_ = 'trident.py'
protocol = dict(
    name='trident_sam',
    default=dict(refinement=dict(type='SAMRefinement', coarse_thresh=0.2)),
    datasets=dict(
        context60=dict(refinement=dict(type='SAMRefinement', coarse_thresh=0.15)),
        context59=dict(refinement=dict(type='SAMRefinement', coarse_thresh=0.15)),
        coco_object=dict(refinement=dict(type='SAMRefinement', coarse_thresh=0.25)),
        coco_stuff164k=dict(refinement=dict(type='SAMRefinement', coarse_thresh=0.05)),
        cityscapes=dict(refinement=dict(type='SAMRefinement', coarse_thresh=0.10)),
        ade20k=dict(refinement=dict(type='SAMRefinement', coarse_thresh=0.05))))
