# Trident's published settings without its refinement (stage E); its words are ProxyCLIP's. `method` has α of the
# affinity, what a negative threshold becomes, and whether halves of an image go through SAM apart.
_base_ = 'proxyclip.py'
protocol = dict(
    name='trident',
    default=dict(short=448, window=336, stride=224, fit='stretch', method=dict(trident=dict(alpha=1.2))),
    datasets=dict(
        voc20=dict(short=336, stride=112, method=dict(trident=dict(alpha=0.0))),
        context60=dict(short=576),
        context59=dict(short=576),
        cityscapes=dict(
            short=688, window=336, method=dict(trident=dict(alpha=3.0, negative=0.6, halves=True))),
        ade20k=dict(short=576, method=dict(trident=dict(negative=0.6)))))
