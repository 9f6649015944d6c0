# The main table of the FSA paper: four methods × with/without FSA × three backbones × eight data sets, each under its
# own protocol. ProxyCLIP also stands under `fsa`, its protocol with FSA, so that every gain is one of two rows under
# one protocol; where the two protocols are alike, the number is computed once.
DATASETS = ['voc21', 'context60', 'coco_object', 'voc20', 'context59', 'coco_stuff164k', 'cityscapes', 'ade20k']
suite = dict(
    name='paper',
    groups=[
        dict(
            backbone=[backbone],
            method=[method],
            vfm=['dino_vit-b8'],
            feedback=[feedback],
            protocol=[protocol],
            dataset=DATASETS,
        )
        for backbone in ('clip_vit-b16', 'clip_vit-l14', 'openclip_vit-h14')
        for method, feedback, protocol in (
            ('maskclip', None, 'own'),
            ('maskclip', 'fsa', 'own'),
            ('sclip', None, 'own'),
            ('sclip', 'fsa', 'own'),
            ('clearclip', None, 'own'),
            ('clearclip', 'fsa', 'own'),
            ('proxyclip', None, 'proxyclip'),
            ('proxyclip', None, 'fsa'),
            ('proxyclip', 'fsa', 'fsa'),
        )
    ],
)
