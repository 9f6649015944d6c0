# ProxyCLIP (arXiv 2408.04883). FSA was published on it, with a protocol of its own.
method = dict(name='proxyclip', segmentor=dict(type='ProxyCLIP'), protocol='proxyclip', fsa_protocol='fsa')
