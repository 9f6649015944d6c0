# MAE ViT-B/16: position embeddings plainly bicubic to size; FSA was published with a λ of its own for it.
vfm = dict(name='mae_vit-b16', type='TimmViT', model='vit_base_patch16_224.mae', pos_embed='size', fsa=dict(lam=4.5))
