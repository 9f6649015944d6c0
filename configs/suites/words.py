# ProxyCLIP + FSA under the class words of several protocols. All else is FSA's, whose words are ProxyCLIP's. Where two
# protocols have the same words on a data set, they are one cell under two names, and the number is computed once.
suite = dict(
    name='words',
    groups=[
        dict(
            method=['proxyclip'],
            feedback=['fsa'],
            protocol=['fsa'],
            words=['fsa', 'sclip', 'clearclip', 'names'],
            dataset=['voc21', 'coco_object', 'voc20'],
        )
    ],
)
