"""Training-free open-vocabulary segmentation with CLIP, on MMSegmentation; importing it registers its parts."""

from fsa_seg.apps.segmenter import Segmenter
from fsa_seg.datasets import data_sets  # noqa: F401  (registration)
from fsa_seg.evaluation import metric  # noqa: F401  (registration)
from fsa_seg.models import vfm  # noqa: F401  (registration)
from fsa_seg.models.window import patch_logits
from fsa_seg.visualization import pictures  # noqa: F401  (registration)

__version__ = '0.1.0'
__all__ = ['Segmenter', 'patch_logits']
