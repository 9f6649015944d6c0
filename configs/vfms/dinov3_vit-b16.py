# DINOv3 ViT-B/16: rotary position embeddings, and the licence of DINOv3.
vfm = dict(name='dinov3_vit-b16', type='TimmRoPEViT', model='vit_base_patch16_dinov3.lvd1689m')
