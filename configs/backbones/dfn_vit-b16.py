# ViT-B/16 trained on DFN-2B (data filtering networks).
backbone = dict(name='dfn_vit-b16', model='ViT-B-16-quickgelu', pretrained='dfn2b', licence='Apple ASCL')
