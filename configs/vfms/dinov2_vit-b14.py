# DINOv2 ViT-B/14 with registers, whose publisher resizes position embeddings as timm does: to size, antialiased.
vfm = dict(name='dinov2_vit-b14', type='TimmViT', model='vit_base_patch14_reg4_dinov2.lvd142m', pos_embed='timm')
