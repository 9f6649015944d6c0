# PASCAL Context validation split with background: 5105 images (5104 in some copies), 60 classes.
dataset = dict(
    name='context60',
    type='PascalContextDataset',
    data_root='VOCdevkit/VOC2010',
    ann_file='ImageSets/SegmentationContext/val.txt',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassContext'),
    images=[5104, 5105],
)
