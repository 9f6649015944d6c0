# CLIP as trained, read out at every patch. It has no protocol of its own publication.
method = dict(name='clip', segmentor=dict(type='CLIP'), protocol='clearclip')
