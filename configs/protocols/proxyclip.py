# ProxyCLIP's published settings. Lengths in pixels of the resized image.
# `words` says how a data set's class names become queries: see fsa_seg.text.class_words.
protocol = dict(
    name='proxyclip',
    default=dict(logit_scale=40, short=336, window=336, stride=112, prob_thd=0.0, area_thd=None),
    datasets=dict(
        voc21=dict(
            prob_thd=0.2,
            words=dict(
                rename={'boat': 'ship', 'diningtable': 'table'},
                background=[
                    'sky', 'wall', 'tree', 'wood', 'grass', 'road', 'sea', 'river', 'mountain', 'sands', 'desk', 'bed',
                    'building', 'cloud', 'lamp', 'door', 'window', 'wardrobe', 'ceiling', 'shelf', 'curtain', 'stair',
                    'floor', 'hill', 'rail', 'fence'
                ])),
        voc20=dict(words=dict(rename={'boat': 'ship', 'diningtable': 'table'})),
        context60=dict(prob_thd=0.15),
        context59=dict(),
        coco_object=dict(
            prob_thd=0.25,
            words=dict(background=[
                'sky', 'wall', 'tree', 'wood', 'grass', 'road', 'sea', 'river', 'mountain', 'sands', 'desk', 'bed',
                'building', 'cloud', 'floor', 'hill', 'rail'
            ])),
        coco_stuff164k=dict(words=dict(join_spaces=True)),
        cityscapes=dict(short=448, window=224, words=dict(join_spaces=True)),
        ade20k=dict(short=448, words=dict(join_spaces=True))))
