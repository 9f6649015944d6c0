# The field: all methods of the suite and two named maps, with and without FSA, under the one protocol `proxyclip`; and
# each method under its own. ResCLIP's published rows have the feedback SFR, so that it has SFR and both in turn as
# well, and on two more hosts SFR as published. The maps' own protocols need parts that the suite does not have.
# LPOSS+ and two stages on other hosts stand beside the methods that they come from; CorrCLIP has a VFM's regions.
DATASETS = ['voc21', 'context60', 'coco_object', 'voc20', 'context59', 'coco_stuff164k', 'cityscapes', 'ade20k']
METHODS = [
    'clip', 'maskclip', 'sclip', 'clearclip', 'naclip', 'proxyclip', 'pearl', 'resclip', 'scclip', 'sfp', 'gem',
    'lposs', dict(type='lposs', pixels=True), 'trident', 'corrclip', 'proxyclip+lposs', 'clearclip+trident'
]
MAPS = [dict(attention='qq+kk+vv', residual=True, mlp=True), dict(attention='itaclip', residual=True)]
FEEDBACKS = dict(resclip=[None, 'fsa', 'sfr', 'sfr+fsa'])
suite = dict(
    name='field',
    groups=[
        dict(
            method=[method],
            feedback=FEEDBACKS.get(str(method), [None, 'fsa']),
            protocol=[protocol],
            dataset=DATASETS,
        )
        for protocol, methods in (('proxyclip', [*METHODS, *MAPS]), ('own', METHODS))
        for method in methods
    ]
    + [
        dict(method=[dict(type='resclip', host=host)], feedback=['sfr'], protocol=['own'], dataset=DATASETS)
        for host in ('clearclip', 'sclip')
    ],
)
