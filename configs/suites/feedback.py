# FSA against SFR against both in turn, on every host whose attention map is a softmax of logits, which SFR adapts. All
# under the protocol `proxyclip`.
suite = dict(
    name='feedback',
    groups=[
        dict(
            method=[
                'clip',
                'sclip',
                'clearclip',
                'naclip',
                'proxyclip',
                'pearl',
                'resclip',
                'gem',
                dict(attention='qq+kk+vv', residual=True, mlp=True),
                dict(attention='itaclip', residual=True),
            ],
            feedback=[None, 'fsa', 'sfr', 'sfr+fsa'],
            protocol=['proxyclip'],
            dataset=['voc21', 'context59', 'ade20k'],
        )
    ],
)
