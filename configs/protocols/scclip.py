# SC-CLIP's published settings of ViT-B/16, without PAMR; its words are SCLIP's.
_base_ = 'sclip.py'
protocol = dict(
    name='scclip',
    datasets=dict(
        voc21=dict(logit_scale=50, prob_thd=0.15),
        context60=dict(logit_scale=40, prob_thd=0.15),
        coco_object=dict(logit_scale=55, prob_thd=0.35),
        coco_stuff164k=dict(short=336),
    ),
)
