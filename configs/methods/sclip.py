# SCLIP (arXiv 2312.01597).
method = dict(name='sclip', segmentor=dict(type='SCLIP'), protocol='sclip')
