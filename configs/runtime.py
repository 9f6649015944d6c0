# How a run is carried out. Nothing here can change a number.
default_scope = 'mmseg'
launcher = 'none'
log_level = 'INFO'
work_dir = 'work_dirs'
workers = 4  # processes that load images, per GPU
batch_size = 1  # images per step, per GPU; they may differ in size
log_interval = 50  # steps between two lines of progress
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl'))
model_wrapper_cfg = dict(type='MMSeparateDistributedDataParallel')
