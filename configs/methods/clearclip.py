# ClearCLIP (arXiv 2407.12442).
method = dict(name='clearclip', segmentor=dict(type='ClearCLIP'), protocol='clearclip')
