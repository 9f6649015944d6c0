# MetaCLIP's ViT-L/14, trained on 2.5 billion pairs.
backbone = dict(
    name='metaclip_vit-l14', model='ViT-L-14-quickgelu', pretrained='metaclip_fullcc', licence='CC-BY-NC-4.0'
)
