# SCLIP's published settings and its words.
person = [
    'person', 'person in shirt', 'person in jeans', 'person in dress', 'person in sweater', 'person in skirt',
    'person in jacket'
]
tvmonitor = ['television monitor', 'tv monitor', 'monitor', 'television', 'screen']
background = [
    'sky', 'wall', 'tree', 'wood', 'grass', 'road', 'sea', 'river', 'mountain', 'sands', 'desk', 'bed', 'building',
    'cloud', 'lamp', 'door', 'window', 'wardrobe', 'ceiling', 'shelf', 'curtain', 'stair', 'floor', 'hill', 'rail',
    'fence'
]
voc_words = dict(
    rename={'boat': 'ship', 'diningtable': 'table'}, synonyms=dict(person=person, tvmonitor=tvmonitor))
protocol = dict(
    name='sclip',
    default=dict(logit_scale=40, short=336, window=224, stride=112, prob_thd=0.0, area_thd=None),
    datasets=dict(
        voc21=dict(logit_scale=65, prob_thd=0.1, area_thd=0.1, words=dict(voc_words, background=background)),
        voc20=dict(words=voc_words),
        context60=dict(logit_scale=50, prob_thd=0.1),
        context59=dict(),
        coco_object=dict(
            logit_scale=50,
            prob_thd=0.1,
            words=dict(synonyms=dict(person=[*person, 'body']), background=background)),
        coco_stuff164k=dict(short=448, words=dict(join_spaces=True)),
        cityscapes=dict(short=560, words=dict(join_spaces=True)),
        ade20k=dict(words=dict(join_spaces=True))))
