"""Training-free open-vocabulary segmentation with CLIP, on MMSegmentation.

`import fsa_seg` loads no library and registers nothing: `fsa_seg.register` does that, or the first use of a name below.
"""

import importlib
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsa_seg.apps.evaluate import evaluate
    from fsa_seg.apps.segmenter import Segmenter
    from fsa_seg.evaluation.results import load_results
    from fsa_seg.models.window import patch_logits

__version__ = '0.1.0'
__all__ = ['Segmenter', 'evaluate', 'load_results', 'patch_logits']
_PLACES = dict(
    Segmenter='fsa_seg.apps.segmenter',
    evaluate='fsa_seg.apps.evaluate',
    load_results='fsa_seg.evaluation.results',
    patch_logits='fsa_seg.models.window',
)


def __getattr__(name: str):
    """Return a public name, whose module is imported when the name is first used."""
    if name not in _PLACES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Fail to import')  # mmcv without its compiled operators, unused here
        return getattr(importlib.import_module(_PLACES[name]), name)
