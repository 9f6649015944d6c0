# OpenAI's CLIP ViT-B/16. `checkpoint='FILE'` takes a local file of these weights, here and in the other backbones.
backbone = dict(name='clip_vit-b16', model='ViT-B-16-quickgelu', pretrained='openai', licence='MIT')
