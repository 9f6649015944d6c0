# DINOv2 ViT-B/14 without registers, whose publisher resizes position embeddings as DINO's: with an offset.
vfm = dict(name='dinov2_vit-b14-noreg', type='TimmViT', model='vit_base_patch14_dinov2.lvd142m')
