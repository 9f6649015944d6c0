import os

import pytest
import torch
from safetensors.torch import load_file

from fsa_seg.errors import UserError
from fsa_seg.ops import pamr as pamr_module
from fsa_seg.ops.pamr import PAMR, pamr
from fsa_seg.profiling.measured import tensor_peak

from conftest import ROOT


@pytest.fixture(scope='module')
def golden():
    return load_file(os.path.join(ROOT, 'tests', 'golden', 'attention_seed0.safetensors'))


@pytest.mark.parametrize('block', [1, 2**30])
def test_golden(golden, block, monkeypatch):
    """One query at a time, or all at once."""
    monkeypatch.setattr(pamr_module, 'BLOCK_VALUES', dict(cpu=block, cuda=block))
    for image, scores, refined in zip(*(golden[f'pamr.{name}'] for name in ('image', 'scores', 'refined'))):
        torch.testing.assert_close(PAMR().refine(scores.clone(), image), refined, atol=1e-5, rtol=0)
        wrong = pamr(scores.clone(), image, 9)
        assert (wrong - refined).abs().max() > 1e-5


def test_by_hand():
    """On an image of one colour every neighbour weighs the same, and borders are replicated."""
    values, image = torch.tensor([[[0.0, 0.0, 9.0]]]), torch.zeros(3, 1, 3)
    # of the 8 neighbours at distance 1, six lie to the left or right, two (above, below) on the pixel itself
    expected = torch.tensor([[[0.0, 27 / 8, 45 / 8]]])
    torch.testing.assert_close(pamr(values.clone(), image, 1, (1,)), expected)
    assert torch.equal(pamr(values.clone(), image, 0, (1,)), values)


def test_other_colours_weigh_nothing():
    """The right half has another colour: its values do not pass the border."""
    image, values = torch.zeros(3, 8, 8), torch.zeros(1, 8, 8)
    image[:, :, 4:], values[:, :, 4:] = 5.0, 1.0
    refined = pamr(values.clone(), image, 5, (1, 2))
    assert (refined[0, :, :4] < 0.05).all() and (refined[0, :, 4:] > 0.95).all()


def test_an_image_of_one_pixel():
    values = torch.rand(4, 1, 1)
    torch.testing.assert_close(pamr(values.clone(), torch.rand(3, 1, 1)), values)


def test_memory_is_a_few_blocks_beside_the_values(monkeypatch):
    """A direct evaluation holds 16 values for each query and pixel."""
    values, image = torch.rand(100, 48, 64), torch.rand(3, 48, 64)
    monkeypatch.setattr(pamr_module, 'BLOCK_VALUES', dict(cpu=4 * 48 * 64, cuda=4 * 48 * 64))
    assert tensor_peak(lambda: pamr(values, image), 'cpu') < values.numel() * 4


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(steps=-1), 'steps is -1; it has to be a whole number'),
        (dict(steps=2.0), 'steps is 2.0'),
        (dict(dilations=[]), 'dilations is \\[\\]; it has to be a list'),
        (dict(dilations=[0]), 'dilations is \\[0\\]'),
        (dict(dilations=8), 'dilations is 8'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        PAMR(**settings)
