import pytest
import torch

from fsa_seg.config.suites import load_suite
from fsa_seg.errors import UserError
from fsa_seg.methods.naclip import NACLIP
from fsa_seg.ops.feedback import FSA
from fsa_seg.profiling import architectures

CELL = dict(backbone='toy', vfm='toy', method=dict(attention='qq'), feedback='fsa', check=True)


@pytest.fixture
def run(tmp_path):
    suite = load_suite('architectures')
    suite.window = 96
    return lambda cell: architectures.ArchitectureRuns(suite, 0, 'fp32', 'cpu', str(tmp_path)).row(cell)


@pytest.mark.parametrize('attention', ['qk', 'qq', 'kk', 'vv', 'qq+kk', 'identity', 'proxy'])
@pytest.mark.parametrize('residual', [False, True])
def test_agrees_with_the_dense_evaluation(run, attention, residual):
    row = run(dict(CELL, method=dict(attention=attention, residual=residual, mlp=residual)))
    assert row['error'] is None and row['difference'] <= 1e-5
    assert row['grid'] == ([12, 12] if attention == 'proxy' else [6, 6])
    assert row['random_weights'] == 0 and row['trunk'] > 0 and row['last_block'] > 0


@pytest.mark.parametrize('method', ['naclip', dict(type='naclip', sigma=2.0), 'sclip'])
def test_named_methods_agree_with_the_dense_evaluation(run, method):
    row = run(dict(CELL, method=method))
    assert row['error'] is None and row['difference'] <= 1e-5


def test_a_wrong_constant_is_found(run, monkeypatch):
    similarities = FSA.similarities
    monkeypatch.setattr(FSA, 'similarities', lambda self, z, uniform: similarities(self, z, 1.1 * uniform))
    assert 'Disagreement' in run(CELL)['error'] or 'from the dense evaluation' in run(CELL)['error']


def test_a_row_is_kept_and_a_failed_one_is_not(run, monkeypatch):
    row = run(CELL)
    monkeypatch.setattr(architectures, 'token_logits', lambda *_, **__: pytest.fail('it was run again'))
    assert run(CELL) == row
    monkeypatch.setattr(architectures, 'token_logits', lambda *_, **__: (torch.full((1, 1, 1), float('nan')), (1, 1)))
    clip = dict(CELL, method='clip')
    failed = run(clip)
    assert failed['error'] == 'RuntimeError: some cosines are not finite'
    assert 'FAILED: RuntimeError' in architectures.architectures_table([row, failed], '')
    monkeypatch.undo()
    assert run(clip)['error'] is None


@pytest.mark.parametrize('feedback', [dict(rounds=2), dict(isolation=False, terms=['W'], similarity='cosine')])
def test_ablations_are_checked_too(run, feedback):
    row = run(dict(CELL, feedback=feedback))
    assert row['error'] is None and row['difference'] <= 1e-5


def test_whatever_a_component_raises_is_a_failed_row(run, monkeypatch):
    monkeypatch.setattr(NACLIP, 'attention', lambda self, block: {}['x'])
    row = run(dict(CELL, method='naclip'))
    assert row['error'] == "KeyError: 'x'"


def test_a_changed_part_is_another_row(run, tmp_path):
    part = tmp_path / 'mine.py'
    grids = []
    for size in (8, 16):
        part.write_text(
            f"vfm = dict(name='mine', type='TimmViT', model='vit_tiny_patch16_224', model_args=dict("
            f'patch_size={size}, embed_dim=48, depth=1, num_heads=2))'
        )
        grids.append(run(dict(CELL, vfm=str(part), method='proxyclip', check=False))['grid'])
    assert grids == [[12, 12], [6, 6]]


def test_a_part_that_does_not_exist_ends_the_run(run):
    with pytest.raises(UserError, match="unknown backbone 'toi'"):
        run(dict(CELL, backbone='toi'))


def test_measured_memory():
    """The peak counts a freed tensor of 64 MiB; some systems do not tell the peak."""
    (result, (seconds, peak)) = architectures.measured(lambda: float(torch.ones(2**24).sum()), 'cpu')
    assert result == 2**24 and seconds > 0
    assert peak == 0 or 60 * 2**20 < peak < 200 * 2**20


def test_a_window_is_rounded_up_to_whole_patches(run, tmp_path):
    """96 pixels are no multiple of 20; the VFM sees 100 pixels."""
    part = tmp_path / 'mine.py'
    part.write_text(
        "vfm = dict(name='mine', type='TimmViT', model='vit_tiny_patch16_224', model_args=dict(patch_size=20, "
        'img_size=100, embed_dim=48, depth=1, num_heads=2))'
    )
    row = run(dict(CELL, vfm=str(part), method='proxyclip'))
    assert row['error'] is None and row['grid'] == [5, 5] and row['difference'] <= 1e-5
