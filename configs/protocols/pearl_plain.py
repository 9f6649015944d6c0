# PEARL's published settings without its propagation TLP. No figure was published under these settings.
_base_ = 'pearl.py'
protocol = dict(
    name='pearl_plain', default=dict(refinement=None), datasets=dict(cityscapes=dict(refinement=None))
)
