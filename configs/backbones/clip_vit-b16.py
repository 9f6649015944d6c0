# OpenAI's CLIP ViT-B/16. `pretrained` can also be the path of a local file of these weights.
backbone = dict(name='clip_vit-b16', model='ViT-B-16-quickgelu', pretrained='openai')
