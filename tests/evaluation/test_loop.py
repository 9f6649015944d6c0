"""The test loop of a pass: what ends it, with which error, on one process and on several."""

from types import SimpleNamespace

import pytest
from mmengine.evaluator import Evaluator

from fsa_seg.errors import StopError, UserError
from fsa_seg.evaluation import ranks
from fsa_seg.evaluation.loop import PassLoop, StepError, TaskLost, Watch, halves, original
from fsa_seg.system import stopping


class Images(list):
    """Batches of one image each."""

    dataset = ('a', 'b', 'c')


class Seen:
    """A metric that counts images."""

    def __init__(self, name):
        self.name, self.count, self.settled, self.failure = name, 0, 0, None

    def process(self, batch, samples):
        self.count += len(samples)

    def settle(self):
        self.settled += 1

    def evaluate(self, size):
        return {self.name: self.count}


class Acts(Watch):
    """Calls a function at a method of the watch."""

    def __init__(self, **functions):
        vars(self).update(functions)


@pytest.fixture
def loop():
    """The loop of a pass over three images, with two metrics."""
    return make_loop()


def make_loop():
    model = SimpleNamespace(eval=lambda: None, test_step=lambda batch: batch['data_samples'])
    runner = SimpleNamespace(call_hook=lambda *_, **__: None, model=model, visualizer=SimpleNamespace())
    images = Images(dict(inputs=[0], data_samples=[SimpleNamespace(img_path=name)]) for name in Images.dataset)
    return PassLoop(runner=runner, dataloader=images, evaluator=Evaluator([Seen('x'), Seen('y')]))


def raises(error):
    def act(*_):
        raise error

    return act


def counts(loop):
    return [(metric.count, metric.settled) for metric in loop.evaluator.metrics]


def test_an_undisturbed_pass(loop):
    told = []
    loop.watch = Acts(images=told.append)
    assert loop.run() == dict(x=3, y=3) and told == [1, 1, 1]


def test_the_caller_and_the_scheduler_end_the_pass_after_the_image_in_hand(loop, monkeypatch):
    loop.watch = Acts(check=raises(TaskLost('taken over')))
    with pytest.raises(TaskLost):
        loop.run()
    assert counts(loop) == [(1, 1), (1, 1)]  # what is counted is kept
    loop = make_loop()
    loop.watch = Acts(images=lambda count: monkeypatch.setattr(stopping, '_asked_at', 1.0))
    with pytest.raises(stopping.ToBeContinued):
        loop.run()
    assert counts(loop) == [(1, 1), (1, 1)]


def test_a_pass_ends_when_all_its_cells_have_failed(loop):
    first, second = loop.evaluator.metrics
    loop.watch = Acts(images=lambda count: setattr(first, 'failure', UserError('NaN')))
    loop.run()
    assert second.count == 3
    loop = make_loop()
    loop.watch = Acts(images=lambda count: [setattr(one, 'failure', 'NaN') for one in loop.evaluator.metrics])
    loop.run()
    assert counts(loop) == [(1, 0), (1, 0)]
    assert make_loop().run() == dict(x=3, y=3)  # the next pass of the process is another


def test_an_error_of_the_models_names_the_image(loop):
    cause = RuntimeError('boom')
    loop.runner.model.test_step = raises(cause)
    with pytest.raises(StepError, match='^a: RuntimeError: boom$') as caught:
        loop.run()
    assert original(caught.value) is cause and original(cause) is cause
    assert ranks.flag(loop._name) == 'error'  # by which the other processes end


def test_a_full_disk_is_no_error_of_the_models(loop):
    loop.runner.model.test_step = raises(StopError('no room'))
    with pytest.raises(StopError, match='^no room$'):
        loop.run()
    loop = make_loop()
    loop.watch = Acts(check=raises(TaskLost('taken over')))
    loop.evaluator.metrics[1].settle = raises(StopError('no room for the counts in hand'))
    with pytest.raises(StopError, match='in hand'):
        loop.run()


@pytest.mark.parametrize(
    'own, other, kind',
    [
        (None, ['step', 'x'], StepError),
        (None, ['stop', 'x'], StopError),
        (None, ['lost', 'x'], TaskLost),
        (None, ['data', 'x'], UserError),
        (None, ['continued', ''], stopping.ToBeContinued),
        (UserError('of an image'), ['continued', ''], stopping.ToBeContinued),
        (stopping.ToBeContinued(), None, stopping.ToBeContinued),
        (StopError('x'), None, StopError),
    ],
)
def test_all_processes_end_with_the_same_kind_of_error(loop, monkeypatch, own, other, kind):
    """The order of the processes is that of their numbers: the first that failed is named."""
    monkeypatch.setattr(ranks, 'agree', lambda value: [value, other])
    if own is not None:
        loop.watch = Acts(check=raises(own))
    with pytest.raises(kind) as caught:
        loop.run()
    assert type(caught.value) is kind
    assert kind is stopping.ToBeContinued or str(caught.value) == f'process {0 if own else 1}: x'


def test_halves():
    assert list(halves([1, 2, 3])) == [[1], [2, 3]] and list(halves([1, 2])) == [[1], [2]]
