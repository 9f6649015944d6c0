# DINOv3 ViT-L/16: rotary position embeddings, and the licence of DINOv3.
vfm = dict(name='dinov3_vit-l16', type='TimmRoPEViT', model='vit_large_patch16_dinov3.lvd1689m')
