# Both feedbacks in turn: SFR on the method's logits, FSA on the map that comes of it.
feedback = dict(name='sfr+fsa', type='SFRAndFSA', p=0.45)
