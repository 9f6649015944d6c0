"""Architectures: every chosen backbone, VFM, method and feedback on one window of random pixels, with random weights.

All rows share one run of each trunk and VFM. A row adds the last block under its method, and its feedback.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsa_seg.config.components import component_config, component_titles, feedback_of, load_components, segmentor_config
from fsa_seg.config.fingerprint import versions
from fsa_seg.errors import UserError, one_line
from fsa_seg.evaluation.results import row_name, write_result
from fsa_seg.methods import SPELLED_OUT
from fsa_seg.methods.base import Method
from fsa_seg.models.clip import load_clip, trunk, trunk_and_inner
from fsa_seg.models.segmentor import PRECISIONS
from fsa_seg.models.vfm import build_vfm, run_vfm, window_multiple
from fsa_seg.models.window import Features, resolve_feedback, role_features, token_logits, window_cosines
from fsa_seg.ops import reference
from fsa_seg.ops.device import device_name, exact_float32
from fsa_seg.ops.feedback import FSA, prune
from fsa_seg.profiling.measured import measured
from fsa_seg.system.markdown import markdown_table
from fsa_seg.system.paths import sources_digest

DEFAULTS = dict(method='proxyclip', feedback='fsa', backbone='clip_vit-b16', vfm='dino_vit-b8')
FIGURES = ('grid', 'trunk, s', 'VFM, s', 'last block, s', 'weights, MiB', 'memory, MiB', 'from dense')


class ArchitectureRuns:
    """Runs the cells of a suite that has a `window`; each cell gives a row.

    Args:
        suite: see `fsa_seg.config.suites.load_suite`; it holds the `window` in pixels and the number of `queries`.
        seed: seed of weights, pixels and text rows.
        precision: 'fp32', 'fp16' or 'bf16', of trunk and VFM.
        device: device of models and tensors.
        folder: folder of the kept rows.
        force: whether to run cells whose row is kept.
    """

    def __init__(self, suite: Any, seed: int, precision: str, device: str, folder: str, force: bool = False):
        self.suite, self.seed, self.precision, self.device = suite, seed, precision, device
        self.folder, self.force = folder, force
        self._backbone, self._features = (None, None), {}
        exact_float32()
        self._state = [seed, precision, self.where(), suite.queries, sources_digest(), versions()]

    @torch.no_grad()
    def row(self, cell: Mapping[str, Any]) -> dict:
        """Return the row of a cell as a JSON-ready dict; its `error` holds the text of the cell's exception, or None.

        Args:
            cell: kind -> component, see `fsa_seg.config.suites.suite_cells`.
        """
        components = load_components(
            *({**DEFAULTS, **cell}[kind] for kind in ('method', 'feedback', 'backbone', 'vfm'))
        )
        names = component_titles(components)
        spelt = dict(components, method=segmentor_config(components['method']))
        key = json.dumps([spelt, cell.get('check', False), self._state], sort_keys=True)
        path = os.path.join(self.folder, hashlib.sha256(key.encode()).hexdigest()[:16] + '.json')
        if os.path.exists(path) and not self.force:
            with open(path, encoding='utf-8') as f:
                return json.load(f)
        row = dict(names, name=row_name(names), random_weights=self.seed, precision=self.precision, error=None)
        try:
            row.update(self._run(components, cell.get('check', False)))
        except Exception as error:  # a new component may raise any error
            return dict(row, error=one_line(error))
        write_result(row, path)
        return row

    def where(self) -> str:
        """Return a line about the settings and the device of the runs."""
        return (
            f'One window of {self.suite.window}×{self.suite.window} random pixels, {self.suite.queries} queries, '
            f'random weights of seed {self.seed}, {self.precision}, {device_name(self.device)}. '
            "Trunk and VFM ran once each and are shared by the rows that name them; memory is the highest of a row's "
            'components, beyond the weights.'
        )

    def _run(self, components, check):
        """Return the figures of a row: its grid, seconds, bytes and, if `check` holds, the difference from dense."""
        (visual, text, image, tokens, grid), trunk_cost, size = self._trunk(components['backbone'])
        method, vfms = components['method'], {role: self._vfm(vfm) for role, vfm in components['vfm'].items()}
        arguments = dict(
            method=method,
            feedback=resolve_feedback(feedback_of(components)),
            vfm_features={role: features for role, (features, *_) in vfms.items()},
            inner=trunk_and_inner(visual, image, method.inner_blocks(len(visual.transformer.resblocks)))[2],
        )
        (logits, out_grid), cost = measured(
            lambda: token_logits(visual, tokens, grid, text, images=image, **arguments), self.device
        )
        if not logits.isfinite().all():
            raise RuntimeError('some cosines are not finite')
        costs = [trunk_cost, *(vfm_cost for _, vfm_cost, _ in vfms.values()), cost]
        row = dict(
            grid=list(out_grid),
            trunk=trunk_cost[0],
            vfm_seconds=sum(vfm_cost[0] for _, vfm_cost, _ in vfms.values()),
            last_block=cost[0],
            weights=size + sum(vfm_size for *_, vfm_size in vfms.values()),
            memory=max(bytes_ for _, bytes_ in costs),
        )
        row['memory'] = None if math.isnan(row['memory']) else row['memory']
        if check and self.precision == 'fp32':
            row.update(compare(visual, tokens, grid, text, logits, **arguments))
        return row

    def _image(self, multiple):
        """Return random pixels (1, 3, height, width) in 0..1; the window's sides are rounded up to whole patches."""
        sides = [-(-self.suite.window // side) * side for side in multiple]
        return torch.rand(1, 3, *sides, generator=torch.Generator().manual_seed(self.seed)).to(self.device)

    def _trunk(self, component):
        """Return (tower, text rows, image, tokens, grid), cost and bytes of a backbone, and keep the last backbone."""
        key = json.dumps(component, sort_keys=True)
        if self._backbone[0] != key:
            self._backbone = (None, None)  # frees the memory of the last backbone before the next load
            visual = load_clip(**component_config(component, self.seed))[0].visual
            visual = visual.to(self.device, PRECISIONS[self.precision])
            mean, std = (
                torch.tensor(visual.preprocess_cfg[name], device=self.device)[:, None, None] for name in ('mean', 'std')
            )
            generator = torch.Generator().manual_seed(self.seed)
            text = F.normalize(torch.randn(self.suite.queries, visual.proj.shape[1], generator=generator), dim=-1)
            image = (self._image(visual.patch_size) - mean) / std
            (tokens, grid), cost = measured(lambda: trunk(visual, image), self.device)
            self._backbone = (key, ((visual, text.to(self.device), image, tokens, grid), cost, _bytes(visual)))
        return self._backbone[1]

    def _vfm(self, component):
        """Return features, cost and bytes of a VFM, and keep them without the model."""
        key = json.dumps(component, sort_keys=True)
        if key not in self._features:
            vfm = build_vfm(component_config(component, self.seed))
            image = self._image(window_multiple(vfm))
            vfm = vfm.to(self.device, PRECISIONS[self.precision])
            features, cost = measured(lambda: run_vfm(vfm, image), self.device)
            self._features[key] = (features, cost, _bytes(vfm))
        return self._features[key]


def compare(
    visual: nn.Module,
    tokens: Tensor,
    grid: tuple[int, int],
    text: Tensor,
    logits: Tensor,
    method: str | dict | Method,
    feedback: FSA | None,
    vfm_features: Features,
    inner: Mapping[int, Tensor] | None = None,
) -> dict[str, float]:
    """Compare logits with the dense reference, `fsa_seg.ops.reference`; return the `difference` as a dict for a row.

    Pruning is a threshold, and a proxy map drops entries below zero. The dense reference takes both choices from the
    code under test, after a check that its own choices differ at the threshold alone.

    Args: the logits (B, N, Q) of the code under test, and the arguments of `fsa_seg.models.window.token_logits`.

    Raises:
        UserError: the dense reference does not know the method.
        RuntimeError: the difference is larger than 1e-5.
    """
    windows = window_cosines(visual, tokens, grid, text, method, vfm_features, inner)
    method, attention = windows.method, windows.attention
    name = type(method).name
    if name not in reference.METHODS and name != SPELLED_OUT:
        raise UserError(f'the dense reference does not know the method {name}')
    formula = dict(reference.METHODS.get(name, {}), **method.settings)
    keep = support = fsa = None
    if method.roles:
        values = windows.block.values(attention)
        support = attention.apply(torch.eye(values.shape[1])[None].to(text)) > 0
    if feedback is not None:
        uniform, (*before, _) = windows.uniform, windows.rounds(feedback)
        keep = [prune(feedback.similarities(z, uniform), feedback.p).isfinite() for z in before]
        fsa = {key: value for key, value in vars(feedback).items() if key != 'block'}
    features = next(iter(role_features(method, vfm_features).values()), None)
    expected = reference.logits(
        visual, tokens, grid, text, **formula, features=features, keep=keep, support=support, fsa=fsa
    )
    difference = float((logits - expected).abs().max())
    if difference > 1e-5:
        raise RuntimeError(f'the logits are {difference:.1e} from the dense evaluation')
    return dict(difference=difference)


def architectures_table(rows: Sequence[dict], where: str) -> str:
    """Return a Markdown table of rows, under a line that says `where` they ran."""
    table = markdown_table(['backbone', 'VFM', 'method', *FIGURES], map(_cells, rows), right=FIGURES)
    return '\n'.join([where, '', table])


def _cells(row):
    """Return the values of a row of the table, as texts."""
    names = [row['backbone'], row['vfm'] or '–', row['name']]
    if row['error']:
        return [*names, f'FAILED: {row["error"]}', *[''] * (len(FIGURES) - 1)]
    return [
        *names,
        f'{row["grid"][0]}×{row["grid"][1]}',
        f'{row["trunk"]:.2f}',
        f'{row["vfm_seconds"]:.2f}' if row['vfm'] else '–',
        f'{row["last_block"]:.3f}',
        f'{row["weights"] / 2**20:.0f}',
        '–' if row['memory'] is None else f'{row["memory"] / 2**20:.0f}',
        f'{row["difference"]:.1e}' if 'difference' in row else '–',
    ]


def _bytes(model):
    """Return the bytes of a model's parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
