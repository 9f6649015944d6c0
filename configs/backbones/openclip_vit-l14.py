# OpenCLIP's ViT-L/14, trained on LAION-2B; its images are normalised with mean and std 0.5 (the tag says so).
backbone = dict(name='openclip_vit-l14', model='ViT-L-14', pretrained='laion2b_s32b_b82k', licence='MIT')
