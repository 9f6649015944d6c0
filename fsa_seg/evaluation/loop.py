"""The test loop of a pass: it ends after the image in hand when it has to, and one cell that fails ends no other."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from mmengine.registry import LOOPS
from mmengine.runner import TestLoop

from fsa_seg.errors import StopError, UserError, reason
from fsa_seg.evaluation import ranks
from fsa_seg.system import stopping

_NUMBERS = itertools.count()  # of the passes of this process; equal on all processes of a run


class StepError(UserError):
    """The models failed on a batch of images; of several cells of a pass one may be the cause."""


class TaskLost(UserError):
    """Another worker has taken over the task that this worker was running."""


KINDS = dict(step=StepError, stop=StopError, lost=TaskLost, data=UserError)  # of errors that all processes share


class Watch:
    """What a pass tells its caller, and asks it, after each batch of images; this one does nothing."""

    def images(self, count: int) -> None:
        """Take notice that this process has evaluated `count` more images."""

    def check(self) -> None:
        """Raise an error to end the pass; what is counted stays."""


@LOOPS.register_module()
class PassLoop(TestLoop):
    """mmengine's `TestLoop`, over the images of one pass.

    - A SIGTERM ends the loop after the batch in hand, with `fsa_seg.system.stopping.ToBeContinued`.
    - An error of the models is a `StepError` that names the images; an error of the data is raised as it is.
    - A metric that has failed counts no more; if all metrics have, the loop ends.
    - An error on one process ends the loop on all processes, each with the same kind of error.

    Attributes:
        watch (Watch): of the caller.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.watch, self._name = Watch(), f'pass_{next(_NUMBERS)}'

    def run(self) -> dict:
        """Evaluate all images, and return the metrics; an empty dict where metrics have failed."""
        runner = self.runner
        runner.call_hook('before_test')
        runner.call_hook('before_test_epoch')
        runner.model.eval()
        self._agree(self._images())
        figures = self.evaluator.evaluate(len(self.dataloader.dataset))
        runner.call_hook('after_test_epoch', metrics=figures)
        runner.call_hook('after_test')
        return figures

    def _images(self):
        """Evaluate the images of this process; return the error that ended them early, or None."""
        metrics = self.evaluator.metrics
        try:
            with stopping.finishing():
                for index, batch in enumerate(self.dataloader):
                    self.run_iter(index, batch)
                    self.watch.images(len(batch['inputs']))
                    self.watch.check()
                    stopping.check()
                    if all(metric.failure for metric in metrics):
                        ranks.raise_flag(self._name, 'failed')
                    if ranks.flag(self._name):
                        break
        except (Exception, stopping.ToBeContinued) as error:
            return self._ended(error)
        return None

    def _ended(self, error):
        """Tell the other processes of an error, and keep what is counted; return the error, or that of a full disk."""
        ranks.raise_flag(self._name, 'error')
        if type(error) is UserError:  # of the data: its frames would keep the processes that load images
            error.__traceback__ = None
        try:
            for metric in self.evaluator.metrics:
                metric.settle()
        except StopError as full:
            return full
        return error

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: dict[str, Sequence]) -> None:
        """Evaluate one batch of images, see mmengine's `TestLoop`."""
        self.runner.call_hook('before_test_iter', batch_idx=idx, data_batch=data_batch)
        try:
            outputs = self.runner.model.test_step(data_batch)
        except StopError:
            raise
        except Exception as error:
            names = ', '.join(sample.img_path for sample in data_batch['data_samples'])
            raise StepError(f'{names}: {reason(error)}') from error
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook('after_test_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs)

    def _agree(self, error):
        """Raise an error of this process, or of another process; without an error nothing happens."""
        found = ranks.agree(error and [_kind(error), reason(error)])
        kinds = [pair[0] for pair in found if pair]
        if not kinds:
            return
        if len(found) == 1:
            raise error
        if 'continued' in kinds:
            raise stopping.ToBeContinued
        rank = next(rank for rank, pair in enumerate(found) if pair)
        kind, text = found[rank]
        shared = KINDS[kind](f'process {rank}: {text}')
        shared.shared = True
        raise shared from error


def _kind(error):
    """Return the key of KINDS that stands for an error, or 'continued'."""
    if isinstance(error, stopping.ToBeContinued):
        return 'continued'
    return next((kind for kind, cls in KINDS.items() if kind != 'data' and isinstance(error, cls)), 'data')


def original(error: Exception) -> Exception:
    """Return the error behind a `StepError`, so that a bug in a method is seen where it is."""
    return error.__cause__ if isinstance(error, StepError) and isinstance(error.__cause__, Exception) else error


def halves(group: Sequence) -> Iterator[Sequence]:
    """Yield the two halves of a list of two or more."""
    middle = len(group) // 2
    yield from (group[:middle], group[middle:])
