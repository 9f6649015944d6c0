# The default: six methods with and without FSA on the eight data sets, one backbone, each under its own protocol.
# A suite is a list of groups; a group is the product of its lists. What a group leaves out is the command line's, or
# the default of tools/test.py. 'all' stands for every component of a kind but the toys.
DATASETS = ['voc21', 'context60', 'coco_object', 'voc20', 'context59', 'coco_stuff164k', 'cityscapes', 'ade20k']
suite = dict(
    name='methods',
    groups=[
        dict(
            method=['clip', 'maskclip', 'sclip', 'clearclip', 'naclip', 'proxyclip'],
            feedback=[None, 'fsa'],
            dataset=DATASETS,
        )
    ],
)
