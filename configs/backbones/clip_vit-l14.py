# OpenAI's CLIP ViT-L/14.
backbone = dict(name='clip_vit-l14', model='ViT-L-14-quickgelu', pretrained='openai', licence='MIT')
