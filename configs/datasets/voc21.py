# PASCAL VOC 2012 validation split with background: 1449 images, 21 classes.
dataset = dict(
    name='voc21',
    type='PascalVOCDataset',
    data_root='VOCdevkit/VOC2012',
    ann_file='ImageSets/Segmentation/val.txt',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
    images=1449,
)
