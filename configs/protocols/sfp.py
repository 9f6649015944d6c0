# SFP's published settings: SC-CLIP's but for one resize and for "people" in the words of VOC and Cityscapes.
_base_ = 'scclip.py'
people = [
    'people', 'people in shirt', 'people in jeans', 'people in dress', 'people in sweater', 'people in skirt',
    'people in jacket'
]
protocol = dict(
    name='sfp',
    datasets=dict(
        voc21=dict(words=dict(synonyms=dict(person=people))),
        voc20=dict(words=dict(synonyms=dict(person=people))),
        cityscapes=dict(words=dict(rename={'person': 'people'})),
        ade20k=dict(short=384),
    ),
)
