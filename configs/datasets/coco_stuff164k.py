# COCO-Stuff164k val2017: 5000 images, 171 classes.
dataset = dict(
    name='coco_stuff164k',
    type='COCOStuffDataset',
    data_root='coco_stuff164k',
    data_prefix=dict(img_path='images/val2017', seg_map_path='annotations/val2017'),
    images=5000,
)
