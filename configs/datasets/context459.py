# PASCAL Context validation split with all its classes: 5105 images, 459 classes, 16-bit labels.
dataset = dict(
    name='context459',
    type='BaseSegDataset',
    data_root='VOCdevkit/VOC2010',
    ann_file='ImageSets/SegmentationContext459/val.txt',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassContext459'),
    classes='context459_classes.txt',
    reduce_zero_label=True,
    images=5105,
)
