# OpenCLIP's ViT-H/14, trained on LAION-2B; FSA was published with a λ of its own for it.
backbone = dict(
    name='openclip_vit-h14', model='ViT-H-14', pretrained='laion2b_s32b_b79k', licence='MIT', fsa=dict(lam=2.3)
)
