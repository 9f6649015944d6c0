# FSA's parts one at a time around the default, on ProxyCLIP under FSA's protocol. A dict replaces settings of FSA.
suite = dict(
    name='ablation',
    groups=[
        dict(
            method=['proxyclip'],
            protocol=['fsa'],
            dataset=['voc21'],
            feedback=[
                None,
                'fsa',
                dict(isolation=False),
                dict(scale=10.0),
                dict(scale=40.0),
                dict(uniform_scale=20.0),
                dict(uniform_scale=50.0),
                dict(p=1.0),
                dict(p=0.2),
                dict(p=0.7),
                dict(lam=0.0),
                dict(lam=1.5),
                dict(lam=6.0),
                dict(terms=['WA']),
                dict(terms=['AW']),
                dict(terms=['W']),
                dict(terms=['WA', 'AW']),
                dict(terms=['WA', 'W']),
                dict(terms=['AW', 'W']),
                dict(similarity='jeffreys'),
                dict(similarity='cosine'),
                dict(rounds=2),
                dict(rounds=3),
            ],
        )
    ],
)
