# FSA with its published settings. λ is 3.0 unless the backbone or the VFM names its own (`fsa=dict(lam=...)` in their
# files); a `lam` here is used with all of them.
feedback = dict(name='fsa', type='FSA', p=0.45)
