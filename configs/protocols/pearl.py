# PEARL's published settings, its propagation TLP included; the rest is NACLIP's. `method` sets the method's own alpha.
_base_ = 'naclip.py'
protocol = dict(
    name='pearl',
    default=dict(refinement=dict(_delete_=True, type='TLP', side=80, steps=25)),
    datasets=dict(
        cityscapes=dict(refinement=dict(type='TLP', side=224, steps=25), method=dict(pearl=dict(alpha=0.3))),
        ade20k=dict(method=dict(pearl=dict(alpha=0.3))),
    ),
)
