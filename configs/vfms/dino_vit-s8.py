# DINO ViT-S/8.
vfm = dict(name='dino_vit-s8', type='TimmViT', model='vit_small_patch8_224.dino')
