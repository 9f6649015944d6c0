# 33 intermediate attention configurations: eleven attention maps on three backbones, without residual and MLP, all
# under the protocol `proxyclip`, with and without FSA. The paper counts 33; the choice of eleven is ours.
BACKBONES = ['clip_vit-b16', 'clip_vit-l14', 'openclip_vit-h14']
suite = dict(
    name='attention33',
    groups=[
        dict(
            backbone=BACKBONES,
            method=[dict(attention=name) for name in ('qk', 'qq', 'kk', 'vv', 'qq+kk', 'identity')],
            feedback=[None, 'fsa'],
            protocol=['proxyclip'],
            dataset=['voc21'],
        ),
        dict(
            backbone=BACKBONES,
            method=[dict(attention='proxy')],
            vfm=['dino_vit-b8', 'dino_vit-b16', 'dinov2_vit-b14', 'mae_vit-b16', 'sam_vit-b16'],
            feedback=[None, 'fsa'],
            protocol=['proxyclip'],
            dataset=['voc21'],
        ),
    ],
)
