# ClearCLIP's published settings, which its MaskCLIP runs share.
# The background class of VOC21, Context60 and COCO-Object has the one query "background".
protocol = dict(
    name='clearclip',
    default=dict(logit_scale=50, short=448, window=448, stride=224, prob_thd=0.0, area_thd=None),
    datasets=dict(
        voc21=dict(prob_thd=0.5, words=dict(rename={'boat': 'ship', 'diningtable': 'table'})),
        voc20=dict(words=dict(rename={'boat': 'ship', 'diningtable': 'table'})),
        context60=dict(prob_thd=0.15),
        context59=dict(),
        coco_object=dict(prob_thd=0.4),
        coco_stuff164k=dict(words=dict(join_spaces=True)),
        cityscapes=dict(window=224, words=dict(join_spaces=True)),
        ade20k=dict(words=dict(join_spaces=True)),
    ),
)
