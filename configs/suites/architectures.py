# Every backbone × VFM × method × feedback on one window with random weights: does it run, how large is its grid, what
# does it cost? A suite with a `window` (in pixels) needs no data. `check` compares with the dense evaluation of
# fsa_seg/ops/reference.py, at so many `queries`.
BASES = dict(backbone=['all'], feedback=[None, 'fsa'])
NEWER = ['pearl', 'resclip', 'scclip', 'sfp', 'gem']
THREE = ['clip_vit-b16', 'clip_vit-l14', 'openclip_vit-h14']
suite = dict(
    name='architectures',
    window=336,
    queries=21,
    groups=[
        dict(BASES, method=['clip', 'maskclip', 'sclip', 'clearclip', 'naclip', *NEWER]),
        dict(BASES, method=['proxyclip'], vfm=['all']),
        dict(
            backbone=THREE,
            feedback=['fsa'],
            check=True,
            method=[dict(attention=name) for name in ('qk', 'qq', 'kk', 'vv', 'qq+kk', 'identity')],
        ),
        dict(
            backbone=THREE,
            feedback=['fsa'],
            check=True,
            method=[dict(attention='proxy')],
            vfm=['dino_vit-b8', 'dino_vit-b16', 'dinov2_vit-b14', 'mae_vit-b16', 'sam_vit-b16'],
        ),
    ],
)
