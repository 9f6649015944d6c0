# DINOv2 ViT-S/14 with registers, whose publisher resizes position embeddings as timm does: to size, antialiased.
vfm = dict(name='dinov2_vit-s14', type='TimmViT', model='vit_small_patch14_reg4_dinov2.lvd142m', pos_embed='timm')
