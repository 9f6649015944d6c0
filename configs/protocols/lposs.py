# LPOSS's published settings, alike on all data sets. No threshold acts; the scale does not move the largest score.
_base_ = 'proxyclip.py'
voc_words = dict(rename=dict(_delete_=True, diningtable='dining table'))
plain = dict(_delete_=True)
protocol = dict(
    name='lposs',
    default=dict(short=448, window=224, stride=112, fit='pad'),
    datasets=dict(
        voc21=dict(prob_thd=0.0, words=voc_words),
        voc20=dict(words=voc_words),
        context60=dict(prob_thd=0.0),
        coco_object=dict(prob_thd=0.0),
        coco_stuff164k=dict(words=plain),
        cityscapes=dict(short=448, words=plain),
        ade20k=dict(short=448, words=plain)))
