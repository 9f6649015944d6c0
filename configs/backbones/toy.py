# The toy CLIP that the repository ships; see data/mini.
backbone = dict(name='toy', toy=True, model='local-dir:data/mini/models/toy_clip')
