# MaskCLIP (arXiv 2112.01071), under the protocol that ClearCLIP's authors ran it with.
method = dict(name='maskclip', segmentor=dict(type='MaskCLIP'), protocol='clearclip')
