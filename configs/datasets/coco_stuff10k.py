# COCO-Stuff 10K v1.1, test split: 1000 images, 171 classes.
dataset = dict(
    name='coco_stuff10k',
    type='BaseSegDataset',
    data_root='coco_stuff10k',
    data_prefix=dict(img_path='images/test2014', seg_map_path='annotations/test2014'),
    seg_map_suffix='_labelTrainIds.png',
    classes='classes.txt',
    reduce_zero_label=True,
    images=1000,
)
