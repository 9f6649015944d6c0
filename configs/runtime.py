# How a run is carried out. Nothing here changes what is computed; batches and `compile` move its rounding.
default_scope = 'mmseg'
launcher = 'none'
log_level = 'WARNING'  # of the console; the log file in WORK_DIR/logs has everything from INFO on
work_dir = 'work_dirs'
workers = 'auto'  # processes that load images, per GPU: the cores, at most 4
batch_size = 'auto'  # images per step and process; they may differ in size. 1 on a CPU, 8 on a GPU
window_batch = (
    'auto'  # windows, of the step's images, that go through the models at once. 1 on a CPU; by free memory on a GPU
)
compile = False  # torch.compile for trunk and VFM
save_labels = False  # whether the predicted labels of every image are written, into WORK_DIR/labels
visualizer = None  # trackers of the metrics, such as dict(vis_backends=[dict(type='TensorboardVisBackend')])
log_interval = 50  # steps between two lines of progress
env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl')
)
model_wrapper_cfg = dict(type='MMSeparateDistributedDataParallel')
