# DINO ViT-B/8. `checkpoint='FILE'` takes a local file of these weights, here and in the other VFMs.
vfm = dict(name='dino_vit-b8', type='TimmViT', model='vit_base_patch8_224.dino')
