# PASCAL Context validation split without background: 5105 images (5104 in some copies), 59 classes.
dataset = dict(
    name='context59',
    type='PascalContextDataset59',
    data_root='VOCdevkit/VOC2010',
    ann_file='ImageSets/SegmentationContext/val.txt',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassContext'),
    images=[5104, 5105],
)
