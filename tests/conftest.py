import functools
import os
import sys

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, 'tools')]
MINI = os.path.join(ROOT, 'data', 'mini')


@pytest.fixture(autouse=True, scope='session')
def text_cache(tmp_path_factory):
    """Keep the tests' text embeddings apart from the user's."""
    os.environ['FSA_SEG_CACHE'] = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(autouse=True, scope='session')
def one_tokenizer():
    """Read the word pieces of CLIP once: that takes longer than to load the toy models."""
    from open_clip import factory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, 'SimpleTokenizer', functools.lru_cache(factory.SimpleTokenizer))
        yield


@pytest.fixture(scope='session')
def small(tmp_path_factory):
    """A data root with two images of VOC2012's mini split, where it is not the number of images that is tested."""
    root = tmp_path_factory.mktemp('small')
    voc, mini = root / 'VOCdevkit' / 'VOC2012', os.path.join(MINI, 'VOCdevkit', 'VOC2012')
    (voc / 'ImageSets' / 'Segmentation').mkdir(parents=True)
    (voc / 'ImageSets' / 'Segmentation' / 'val.txt').write_text('2007_000033\n2007_000130\n')
    for name in ('JPEGImages', 'SegmentationClass'):
        os.symlink(os.path.join(mini, name), voc / name)
    (root / 'TOY_WORLD').touch()
    return root


@pytest.fixture
def tiny():
    """A tiny random CLIP image tower with patch 16, and nine unit text rows."""
    from open_clip.model import CLIP

    torch.manual_seed(0)
    vision = dict(image_size=64, layers=3, width=64, head_width=16, patch_size=16)
    visual = CLIP(32, vision, dict(vocab_size=64, width=32, heads=2, layers=1)).eval().requires_grad_(False).visual
    for parameter in visual.parameters():  # no part of the tower may be at its (neutral) initial value
        parameter.add_(0.05 * torch.randn_like(parameter))
    return visual, torch.nn.functional.normalize(torch.randn(9, 32), dim=-1)


@pytest.fixture
def run_tool(monkeypatch, tmp_path, capsys):
    """Run a tool's main in this process, from an empty folder: returns (exit status, everything printed)."""
    import importlib

    from fsa_seg.cli.main import TOOLS
    from fsa_seg.cli.tool import run_tool
    from fsa_seg.evaluation.passes import _checked_images

    def run(name, *argv):
        monkeypatch.chdir(tmp_path)
        _checked_images.cache_clear()  # as in a process of its own
        module = importlib.import_module(f'fsa_seg.cli.{name}' if name in TOOLS else name)
        status = 0
        try:
            run_tool(lambda: module.main([str(arg) for arg in argv]))
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
            if not isinstance(error.code, int):
                print(error.code, file=sys.stderr)
        out, err = capsys.readouterr()
        return status, out + err

    return run
