# DINO ViT-B/16.
vfm = dict(name='dino_vit-b16', type='TimmViT', model='vit_base_patch16_224.dino')
