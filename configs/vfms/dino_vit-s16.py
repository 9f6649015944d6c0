# DINO ViT-S/16.
vfm = dict(name='dino_vit-s16', type='TimmViT', model='vit_small_patch16_224.dino')
