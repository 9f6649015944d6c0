# ResCLIP's semantic feedback refinement: it adapts the logits of an attention map, before the softmax.
feedback = dict(name='sfr', type='SFR')
