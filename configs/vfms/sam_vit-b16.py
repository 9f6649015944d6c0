# SAM ViT-B/16: the neck's 256 channels, of the window resized to 1024×1024.
vfm = dict(name='sam_vit-b16', type='TimmSAM', model='samvit_base_patch16.sa1b')
