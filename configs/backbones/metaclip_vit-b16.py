# MetaCLIP's ViT-B/16, trained on 2.5 billion pairs.
backbone = dict(
    name='metaclip_vit-b16', model='ViT-B-16-quickgelu', pretrained='metaclip_fullcc', licence='CC-BY-NC-4.0'
)
