# Cityscapes validation split: 500 images, 19 classes.
dataset = dict(
    name='cityscapes',
    type='CityscapesDataset',
    data_root='cityscapes',
    data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
    images=500,
)
