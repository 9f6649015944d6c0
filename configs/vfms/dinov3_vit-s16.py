# DINOv3 ViT-S/16: rotary position embeddings, and the licence of DINOv3.
vfm = dict(name='dinov3_vit-s16', type='TimmRoPEViT', model='vit_small_patch16_dinov3.lvd1689m')
