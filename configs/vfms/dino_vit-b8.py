# DINO ViT-B/8. `checkpoint='PATH'` takes a local file of these weights.
vfm = dict(name='dino_vit-b8', type='TimmViT', model='vit_base_patch8_224.dino')
