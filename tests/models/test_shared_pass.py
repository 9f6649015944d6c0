from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from fsa_seg.config.compose import compose
from fsa_seg.errors import UserError
from fsa_seg.evaluation.passes import prepare, run_cells, run_pass
from fsa_seg.methods import method_names
from fsa_seg.models import segmentor, shared_pass
from fsa_seg.models.shared_pass import Member, label_field
from fsa_seg.ops import device

from conftest import MINI

WORDS = [['sky', 'wall'], ['cat'], ['grass'], ['road']]


def member(method, fsa=None, **options):
    config = compose('voc21', method, fsa, 'toy', 'toy').model
    return dict(config, **dict(dict(words=WORDS, window=100, stride=64, fit=None), **options))


MEMBERS = [
    *(member(method, fsa) for method in method_names(users=False) for fsa in (None, 'fsa')),
    member('sclip', 'fsa', words=[['cow'], ['river; brook', 'sky'], ['tree']], logit_scale=60.0),
    member('proxyclip', dict(lam=1.0), prob_thd=0.4, area_thd=0.1),
]


def batch():
    """Two images of different size, one lower than the window and of no whole number of patches."""
    torch.manual_seed(0)
    images = [torch.randint(256, (3, h, w), dtype=torch.uint8) for h, w in ((132, 180), (90, 203))]
    return dict(
        inputs=images, data_samples=[SegDataSample(metainfo=dict(ori_shape=size)) for size in ((50, 71), (96, 33))]
    )


def count_runs(model, runs):
    """Note each run of the trunk and of the VFM, by the size of its batch."""
    visual, vfm = model.visual, dict(model.vfms).get('proxy')
    visual.conv1.register_forward_hook(lambda _, inputs, out: runs.append(('trunk', *inputs[0].shape)))
    if vfm is not None:
        vfm.register_forward_hook(lambda _, inputs, out: runs.append(('VFM', *inputs[0].shape)))


OTHER_VFM = dict(  # windows of whole patches: 112
    type='TimmViT',
    model='vit_small_patch14_dinov2',
    model_args=dict(embed_dim=48, depth=2, num_heads=2),
    random_weights=0,
)


@pytest.mark.parametrize('window_batch', [1, 4])
def test_each_member_gives_what_it_gives_alone(window_batch):
    """Bit for bit: members differ in method, feedback, VFM, words and thresholds; alone or in batches of windows."""
    members = [
        dict(config, window_batch=window_batch)
        for config in (*MEMBERS, member('proxyclip', 'fsa', vfm=OTHER_VFM), member('proxyclip', vfm=OTHER_VFM))
    ]
    found = MODELS.build(dict(type='SharedPass', members=members)).test_step(batch())
    seen = set()
    for i, config in enumerate(members):
        alone = MODELS.build(config).test_step(batch())
        for ours, theirs in zip(found, alone):
            assert isinstance(ours.get(label_field(i)), PixelData)
            assert torch.equal(ours.get(label_field(i)).data, theirs.pred_sem_seg.data)
        seen.add(alone[0].pred_sem_seg.data.numpy().tobytes())
    assert len(seen) > 5  # the members are not all alike


def test_trunk_and_vfm_run_once_a_window():
    together, runs = MODELS.build(dict(type='SharedPass', members=MEMBERS)), []
    count_runs(together.members[-1], runs)
    together.test_step(batch())
    roles = [(m.method.roles[role], m.kind(role)) for m in together.members for role in m.vfms]
    seen = {(scope, kind) for scope, kind in roles if scope != 'asked'}
    assert seen == {('window', 'tokens'), ('window', 'values'), ('window', 'q+k'), ('windows', 'tokens')}
    assert runs.count(('trunk', 1, 3, 112, 112)) == 3 * 2 and runs.count(('VFM', 1, 3, 112, 112)) == 4 * 3 * 2
    assert runs.count(('trunk', 1, 3, 96, 112)) == 3 and runs.count(('VFM', 1, 3, 96, 112)) == 4 * 3
    shown = [run for run in runs if run[0] == 'VFM' and run[3:] not in ((112, 112), (96, 112))]
    assert len(shown) == 2 * 2  # whole images: for the affinity, and for regions


def test_members_share_their_models():
    """Weights are held once, whatever the number of members."""
    together = MODELS.build(dict(type='SharedPass', members=MEMBERS))
    assert len({id(m.visual) for m in together.members}) == 1
    assert len({id(vfm) for member in together.members for vfm in member.vfms.values()}) == 1


@pytest.mark.parametrize('size', [2, 5])
def test_windows_in_batches(size):
    """Windows of both images go together where their size allows; the labels are those of one at a time."""
    config = member('proxyclip', 'fsa', stride=20, keep_scores=True)
    one, several, runs = MODELS.build(config), MODELS.build(dict(config, window_batch=size)), []
    count_runs(several, runs)
    data = batch()
    data['inputs'][1] = data['inputs'][1].repeat(1, 2, 1)[:, :110]
    expected, found = one.test_step(data), several.test_step(batch() | dict(inputs=data['inputs']))
    windows = 3 * 5 + 2 * 7
    assert [run[1] for run in runs if run[0] == 'trunk'] == [size] * (windows // size) + [windows % size] * (
        windows % size > 0
    )
    for a, b in zip(expected, found):
        other = (a.pred_sem_seg.data != b.pred_sem_seg.data)[0]
        best, second = a.seg_logits.data[:, other].topk(2, 0).values
        assert (best - second <= 1e-5).all()
        torch.testing.assert_close(a.seg_logits.data, b.seg_logits.data, atol=1e-4, rtol=1e-4)
    again = several.test_step(batch() | dict(inputs=data['inputs']))
    assert all(torch.equal(a.pred_sem_seg.data, b.pred_sem_seg.data) for a, b in zip(found, again))


def test_an_image_is_complete_before_the_next_is_begun():
    """What is held of one image is free before the next one's windows run."""
    model, events = MODELS.build(member('maskclip')), []
    model.visual.conv1.register_forward_hook(lambda *_: events.append('window'))
    images = [torch.zeros(3, 100, 164), torch.zeros(3, 100, 100)]
    for _ in shared_pass.merged_images([Member(model, model.text)], images, [(10, 10)] * 2):
        events.append('image')
    assert events == ['window', 'window', 'image', 'window', 'image']


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('size', [1, 4])
def test_a_gpu_is_not_waited_for_inside_an_image(size):
    model = MODELS.build(
        dict(type='SharedPass', members=[dict(config, window_batch=size) for config in MEMBERS])
    ).cuda()
    data = model.data_preprocessor(batch())
    model.predict(**data)  # what is made once
    torch.cuda.set_sync_debug_mode('error')
    try:
        model.predict(**data)
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize(
    'change', [dict(window=96), dict(precision='bf16'), dict(backbone=dict(model='local-dir:other'))]
)
def test_members_that_do_not_fit_together(change):
    with pytest.raises(ValueError, match=f'differ in {next(iter(change))}'):
        MODELS.build(dict(type='SharedPass', members=[MEMBERS[0], dict(MEMBERS[1], **change)]))


def test_automatic_batches_on_a_gpu(monkeypatch):
    """By half of what is free or could be, over what one window takes; found out once for each list of words."""
    free = dict(mem_get_info=(6 << 30, 0), memory_reserved=3 << 30, memory_allocated=1 << 30)
    for name, value in free.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    for peak, expected in ((200 << 20, 16), (5 << 30, 1), (1, 64)):
        monkeypatch.setattr(device, 'gpu_peak', lambda run, where, peak=peak: (run(), peak))
        assert device.batch_that_fits(lambda: None, torch.device('cuda')) == expected
    asked = []
    monkeypatch.setattr(segmentor, 'batch_that_fits', lambda run, where: run() and asked.append(1) or 2)
    model = MODELS.build(member('proxyclip', 'fsa', words=None))
    for _ in range(2):
        model.predict([torch.zeros(3, 100, 164)], text=model.encode(WORDS))
    assert len(asked) == 1 and model.windows_at_once == 2 and model.window_batch == 'auto'
    model.predict([torch.zeros(3, 100, 164)], text=model.encode(WORDS[:2]))
    assert len(asked) == 2


def out_of_memory(*_):
    raise device.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')


@pytest.mark.parametrize('stage, chosen', [('trunk', 'auto'), ('last block', 8)])
def test_out_of_memory_halves_the_batch(monkeypatch, capsys, stage, chosen):
    """For the rest of the run. In the last member's block the windows of the others are there, and count once."""
    monkeypatch.setattr(segmentor, 'batch_that_fits', lambda run, where: 8)
    members = [member('proxyclip', 'fsa'), member('sclip'), member('maskclip')]
    expected = MODELS.build(dict(type='SharedPass', members=[dict(config, window_batch=2) for config in members]))
    expected = [expected.test_step(batch()) for _ in range(2)]
    finite, kept = shared_pass._finite, shared_pass._kept
    if stage == 'trunk':
        monkeypatch.setattr(shared_pass, '_finite', lambda x: out_of_memory() if len(x) > 2 else finite(x))
    else:
        monkeypatch.setattr(
            shared_pass,
            '_kept',
            lambda method, block, count: (
                out_of_memory() if count > 2 and method.title == 'MaskCLIP' else kept(method, block, count)
            ),
        )
    together = MODELS.build(dict(type='SharedPass', members=[dict(config, window_batch=chosen) for config in members]))
    for before in expected:
        for ours, theirs in zip(together.test_step(batch()), before):
            for i in range(len(members)):
                assert torch.equal(ours.get(label_field(i)).data, theirs.get(label_field(i)).data)
    said = [line for line in capsys.readouterr().err.splitlines() if 'memory' in line]
    assert said == [f'out of GPU memory: windows go through the models {count} at a time' for count in (4, 2)]
    assert together.members[0].windows_at_once == 2


@pytest.mark.parametrize(
    'module, name, stage',
    [
        (shared_pass, '_finite', 'one window'),
        (shared_pass, '_merge', 'the merge of the windows'),
        (segmentor, 'label_tiles', 'the labels of an image'),
    ],
)
def test_memory_that_is_too_small_for_one_window_or_for_an_image(monkeypatch, module, name, stage):
    monkeypatch.setattr(module, name, out_of_memory)
    members = [member(method, window_batch=2) for method in ('sclip', 'clip')]
    model = MODELS.build(dict(type='SharedPass', members=members))
    with pytest.raises(
        UserError, match=f'memory in {stage}, for .*100 pixels and 5 queries, in float32: less is taken'
    ):
        model.test_step(batch())


def test_without_words_or_without_a_compiler(monkeypatch):
    with pytest.raises(RuntimeError, match='pass the text of `encode` to predict'):
        MODELS.build(member('maskclip', words=None)).predict([torch.zeros(3, 100, 100)])

    def refuse(function):
        raise RuntimeError('no compiler')

    monkeypatch.setattr(torch, 'compile', refuse)
    segmentor.check_compiler.cache_clear()
    with pytest.raises(UserError, match='torch.compile does not work here: leave out --compile'):
        MODELS.build(member('maskclip', compile=True))
    with pytest.raises(UserError, match="compile is 'no'"):
        MODELS.build(member('maskclip', compile='no'))


@pytest.mark.parametrize('window_batch', [0, 1.5, 'all'])
def test_bad_window_batches(window_batch):
    with pytest.raises(UserError, match='window_batch is'):
        MODELS.build(member('maskclip', window_batch=window_batch))


def configs(tmp_path, **options):
    options = dict(
        dict(
            dataset='voc21',
            backbone='toy',
            vfm='toy',
            data_root=MINI,
            protocol='proxyclip',
            limit=3,
            runtime=dict(workers=0, work_dir=str(tmp_path), log_level='ERROR'),
        ),
        **options,
    )
    return [
        compose(method=method, feedback=fsa, **options) for method in ('maskclip', 'sclip') for fsa in (None, 'fsa')
    ]


def figures(result):
    return {
        key: result[key] for key in ('cell', 'hash', 'metrics', 'confusion', 'images', 'weights', 'config', 'partial')
    }


def test_results_are_those_of_single_runs(tmp_path):
    """One pass for four cells, one file each; the counts of every image are those of a run of its own."""
    passes = []
    together = run_cells(configs(tmp_path / 'a', limit=2), lambda cells: passes.extend(cells) or cells)
    assert [len(cells) for cells in passes] == [4] and [result['cells_in_pass'] for result in together] == [4] * 4
    apart = run_cells(configs(tmp_path / 'b', limit=2), list, most=1)
    assert [result['cells_in_pass'] for result in apart] == [1] * 4
    for ours, theirs in zip(together, apart):
        theirs['config']['work_dir'] = ours['config']['work_dir']
        assert figures(ours) == figures(theirs)
    assert len({result['metrics']['mIoU'] for result in together}) == 4
    assert len(list((tmp_path / 'a' / 'results').iterdir())) == 4
    chunks = []
    cells = configs(tmp_path / 'c', limit=2) + [
        compose(
            'voc21',
            'proxyclip',
            fsa,
            'toy',
            'toy',
            'proxyclip',
            data_root=MINI,
            limit=2,
            runtime=dict(workers=0, work_dir=str(tmp_path / 'c'), log_level='ERROR'),
        )
        for fsa in (None, 'fsa')
    ]
    in_threes = run_cells(cells, lambda found: chunks.extend(found) or found, most=4)
    assert [len(found) for found in chunks] == [4, 2]
    for ours, theirs in zip(in_threes, together):
        theirs['config']['work_dir'] = ours['config']['work_dir']
        assert figures(ours) == figures(theirs)
    proxy = run_cells(
        [
            compose(
                'voc21',
                'proxyclip',
                'fsa',
                'toy',
                'toy',
                'proxyclip',
                data_root=MINI,
                limit=2,
                runtime=dict(workers=0, work_dir=str(tmp_path / 'd'), log_level='ERROR'),
            )
        ],
        list,
    )[0]
    assert proxy['images'] == in_threes[-1]['images'] and proxy['weights'] == in_threes[-1]['weights']


def test_cells_of_other_windows_run_in_another_pass(tmp_path):
    """As do those of another data set, backbone or precision; the order of the results is that of the cells."""
    others = (dict(), dict(protocol='sclip'), dict(dataset='cityscapes'))
    cells = [config for other in others for config in configs(tmp_path, limit=1, **other)][::-1]
    passes = []
    results = run_cells(cells, lambda found: passes.extend(found) or found)
    assert [len(found) for found in passes] == [4, 4, 4]
    assert [result['cell'] for result in results] == [dict(config.cell) for config in cells]


def test_an_interrupted_pass_goes_on(tmp_path, monkeypatch):
    """Images that all its cells have counted are not run again, whatever way the cells are grouped then."""
    cells = configs(tmp_path)
    expected = [figures(result) for result in run_cells(cells, list)]
    for path in (tmp_path / 'results').iterdir():
        path.unlink()
    prepared = [prepare(config) for config in cells]
    labels, calls = shared_pass.SharedPass.predict, []

    def interrupted(self, *arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return labels(self, *arguments)

    monkeypatch.setattr(shared_pass.SharedPass, 'predict', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_pass(prepared)
    monkeypatch.undo()
    results = run_pass(prepared[2:]) + run_pass(prepared[:1]) + run_pass(prepared[1:2])
    assert [result['images_resumed'] for result in results] == [2] * 4
    assert [figures(results[i]) for i in (2, 3, 0, 1)] == expected


def test_members_that_differ_in_feedback_share_the_last_block(monkeypatch):
    """And those of one window of 0 share a pass whatever their stride."""
    members = [member('sclip', fsa) for fsa in (None, 'fsa', dict(p=0.6))] + [member('clip')]
    together, blocks = MODELS.build(dict(type='SharedPass', members=members)), []
    own = shared_pass.WindowCosines
    monkeypatch.setattr(shared_pass, 'WindowCosines', lambda *given: blocks.append(given[0].name) or own(*given))
    together.test_step(dict(inputs=[torch.zeros(3, 64, 64, dtype=torch.uint8)]))
    assert sorted(blocks) == ['clip', 'sclip']
    whole = [dict(member('sclip'), window=0), dict(member('clip'), window=0, stride=7)]
    assert len(MODELS.build(dict(type='SharedPass', members=whole)).members) == 2


def test_a_kept_trunk_gives_all_earlier_blocks_that_were_read():
    batch = shared_pass._Batch([SimpleNamespace(inner_blocks=(0,))], [])
    batch.read_for([SimpleNamespace(inner_blocks=(3,))])
    batch.read_for([SimpleNamespace(inner_blocks=())])
    assert batch._inner == [0, 3]
