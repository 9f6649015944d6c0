# The toy CLIP that the repository ships; see data/mini.
backbone = dict(name='toy', toy=True, licence='Apache-2.0', model='local-dir:data/mini/models/toy_clip')
