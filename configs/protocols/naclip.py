# NACLIP's published settings, PAMR included; its words are SCLIP's. A window of 0 is the whole image.
_base_ = 'sclip.py'
protocol = dict(
    name='naclip',
    default=dict(refinement=dict(type='PAMR', steps=10, dilations=[8, 16])),
    datasets=dict(
        voc21=dict(window=0, logit_scale=40, area_thd=None),
        voc20=dict(window=0),
        context60=dict(logit_scale=40),
        coco_object=dict(logit_scale=40),
        coco_stuff164k=dict(short=336),
    ),
)
