# ADE20K in full (ADE20K_2021_17_01), validation split: 2000 images, 847 classes, 16-bit labels.
dataset = dict(
    name='ade20k847',
    type='BaseSegDataset',
    data_root='ade/ADE20K_2021_17_01',
    data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
    classes='classes.txt',
    reduce_zero_label=True,
    images=2000,
)
