# ResCLIP's published settings of ViT-B/16; windows, scale, words and thresholds are those of naclip_plain.
# `method` has τ and λ of RCS, `feedback` those of SFR and its threshold of confidence.
_base_ = 'naclip_plain.py'
protocol = dict(
    name='resclip',
    datasets=dict(
        voc21=dict(
            method=dict(resclip=dict(tau=2.0, lam=0.3)), feedback=dict(SFR=dict(tau=2.2, lam=0.7, threshold=0.5))),
        voc20=dict(
            method=dict(resclip=dict(tau=2.0, lam=0.6)), feedback=dict(SFR=dict(tau=2.1, lam=0.6, threshold=0.1))),
        context60=dict(
            method=dict(resclip=dict(tau=2.0, lam=0.3)), feedback=dict(SFR=dict(tau=1.8, lam=0.7, threshold=0.3))),
        context59=dict(
            method=dict(resclip=dict(tau=2.0, lam=0.4)), feedback=dict(SFR=dict(tau=1.8, lam=0.7, threshold=0.25))),
        coco_object=dict(
            method=dict(resclip=dict(tau=2.0, lam=0.4)), feedback=dict(SFR=dict(tau=1.8, lam=0.7, threshold=0.11))),
        coco_stuff164k=dict(
            method=dict(resclip=dict(tau=2.0, lam=0.4)), feedback=dict(SFR=dict(tau=1.8, lam=0.7, threshold=0.11))),
        cityscapes=dict(
            method=dict(resclip=dict(tau=2.0, lam=0.2)), feedback=dict(SFR=dict(tau=2.1, lam=0.6, threshold=0.1))),
        ade20k=dict(
            method=dict(resclip=dict(tau=2.0, lam=0.3)), feedback=dict(SFR=dict(tau=2.1, lam=0.7, threshold=0.25)))))
