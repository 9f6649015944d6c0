# OpenAI's CLIP ViT-L/14, trained further at 336 pixels.
backbone = dict(name='clip_vit-l14-336', model='ViT-L-14-336-quickgelu', pretrained='openai', licence='MIT')
