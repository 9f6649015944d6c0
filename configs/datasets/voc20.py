# PASCAL VOC 2012 validation split without background: 1449 images, 20 classes.
dataset = dict(
    name='voc20',
    type='PascalVOC20Dataset',
    data_root='VOCdevkit/VOC2012',
    ann_file='ImageSets/Segmentation/val.txt',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
    images=1449,
)
