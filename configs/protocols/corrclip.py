# CorrCLIP's published settings: ProxyCLIP's but for two words. "person" is "people" everywhere.
_base_ = 'proxyclip.py'
people = dict(rename={'person': 'people'})
protocol = dict(
    name='corrclip',
    datasets=dict(
        voc21=dict(words=people),
        voc20=dict(words=people),
        context60=dict(words=people),
        context59=dict(words=people),
        coco_object=dict(
            words=dict(
                people,
                background=[
                    'sky', 'wall', 'tree', 'wood', 'grass', 'road', 'sea', 'river', 'mountain', 'sands', 'desk',
                    'building', 'cloud', 'floor', 'hill', 'rail'
                ])),
        coco_stuff164k=dict(words=people),
        cityscapes=dict(words=people),
        ade20k=dict(words=people)))
