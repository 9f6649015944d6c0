# OpenCLIP's ViT-B/16, trained on LAION-2B.
backbone = dict(name='openclip_vit-b16', model='ViT-B-16', pretrained='laion2b_s34b_b88k', licence='MIT')
