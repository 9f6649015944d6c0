# COCO val2017 with its 80 things and background: 5000 images, 81 classes.
dataset = dict(
    name='coco_object',
    type='COCOObjectDataset',
    data_root='coco_stuff164k',
    data_prefix=dict(img_path='images/val2017', seg_map_path='annotations/val2017'),
    images=5000,
)
