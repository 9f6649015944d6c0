# The toy VFM that the repository ships; see data/mini.
vfm = dict(
    name='toy',
    toy=True,
    licence='Apache-2.0',
    type='TimmViT',
    model='vit_tiny_patch16_224',
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    model_args=dict(patch_size=8, embed_dim=96, depth=4, num_heads=3, img_size=96),
    checkpoint='data/mini/models/toy_vfm/model.safetensors',
)
