# FSA's published settings on ProxyCLIP: ProxyCLIP's own but for two thresholds and one stride.
_base_ = 'proxyclip.py'
protocol = dict(
    name='fsa', datasets=dict(context60=dict(prob_thd=0.14), coco_object=dict(prob_thd=0.3), cityscapes=dict(stride=80))
)
