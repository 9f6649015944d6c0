"""Registers all that a composed config names: a config's `custom_imports` lists this module."""

from fsa_seg.config.own_classes import register_own_classes
from fsa_seg.datasets import data_sets, label_images  # noqa: F401
from fsa_seg.evaluation import metric  # noqa: F401
from fsa_seg.models import segmentor, shared_pass, vfm  # noqa: F401
from fsa_seg.visualization import pictures  # noqa: F401

register_own_classes()
segmentor.register_own_methods()
