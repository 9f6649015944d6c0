# ADE20K (ADEChallengeData2016) validation split: 2000 images, 150 classes.
dataset = dict(
    name='ade20k',
    type='ADE20KDataset',
    data_root='ade/ADEChallengeData2016',
    data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
    images=2000,
)
