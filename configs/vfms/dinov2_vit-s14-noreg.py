# DINOv2 ViT-S/14 without registers, whose publisher resizes position embeddings as DINO's: with an offset.
vfm = dict(name='dinov2_vit-s14-noreg', type='TimmViT', model='vit_small_patch14_dinov2.lvd142m')
