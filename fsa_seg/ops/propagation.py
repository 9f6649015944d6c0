"""TLP: text-aware label propagation, which smooths cosines between the edges of the image.

Source of the formula: PEARL (CVPR 2026, arXiv 2603.21528) and its published code, from whose description in formulas
this file was written.

Shape legend: Q queries; height and width in pixels; (h, w) the pooled grid, whose neighbours above and below, left and
right of each other are joined by edges.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.errors import UserError
from fsa_seg.ops.device import constant
from fsa_seg.settings import choice, whole

BLOCK_VALUES = dict(cpu=2**21, cuda=2**26)  # refined values that are made at once: 8 MiB, 256 MiB
SIDE = 80  # PEARL's published setting, in cells of the pooled grid; on Cityscapes 224
STEPS = 25  # PEARL's published setting
PRODUCTS = ('diagonal', 'full')  # the published code's, and the formula's
TEMPERATURE = 0.5  # of the softmax over text similarities
SELF_WEIGHT = 10.0  # of a query in its own row of S, beside the softmax
LEAST_CONFIDENCE = 0.05
CONTRAST = 5.0  # factor on the difference in grey
GREY = (0.299, 0.587, 0.114)  # of red, green and blue; the choice is ours
LEAST_DIFFERENCE = 1e-4  # of the mean in grey, 1/100 of one level of 8 bits: what is below is rounding; ours


class TLP:
    """A refinement of the cosines of an image's pixels, before scale and softmax; see `tlp`.

    Args:
        side (int): aim for height and width of the pooled grid. Each side of the image is pooled by the whole number
            nearest to its length / `side`, at least 1; a half goes to the even number.
        steps (int): conjugate-gradient steps. They are part of the method: PEARL's 25 end before convergence. 0 leaves
            the cosines as they are, not pooled either.
        product (str): how S, the similarity of the queries' texts, enters a product pᵀSp. 'diagonal' uses the diagonal
            of S alone, as the published code computes; 'full' uses S, as PEARL's formula is written.

    Raises:
        UserError: a value that is out of its range.
    """

    refines = 'cosines'

    def __init__(self, side: int = SIDE, steps: int = STEPS, product: str = 'diagonal'):
        settings = (
            ('side', side, whole(1), f'{SIDE}, on Cityscapes 224'),
            ('steps', steps, whole(0), str(STEPS)),
            ('product', product, choice(*PRODUCTS), "the formula says 'full', the code computes 'diagonal'"),
        )
        for key, value, rule, published in settings:
            if not rule.fits(value):
                raise UserError(f'TLP: {key} is {value!r}; it has to be {rule.allowed} (published: {published})')
        self.side, self.steps, self.product = side, steps, product

    def refine(self, values: Tensor, image: Tensor, text: Any) -> Tensor:
        """Return refined values (Q, height, width) float32; see `tlp`.

        Args:
            values (Q, height, width): cosines at the image's original size; they are overwritten.
            image (3, height, width): the normalised input at that size.
            text: with `rows` (Q, E), the unit text rows of the queries.
        """
        return tlp(values, image, text.rows, self.side, self.steps, self.product)


def tlp(
    values: Tensor, image: Tensor, rows: Tensor, side: int = SIDE, steps: int = STEPS, product: str = 'diagonal'
) -> Tensor:
    """Refine values in place by propagation on a pooled grid, and return them.

    1. Image and values are pooled by average; rows and columns of pixels that do not fill a cell are left out. z are
       the pooled values, p = softmax over queries of z.
    2. S: see `text_similarities`.
    3. C_i = max(max_q p_i, 0.05)²·(1 + p_iᵀSp_i) is the confidence of a cell i.
    4. w_ij = exp(−5·|Δgrey|/mean|Δgrey|)·(1 + p_iᵀSp_j), at most 1, is the weight of the edge between cells i and j.
       The mean is over the edges of both directions together, and at least 1e-4: in an image of one colour every
       exponent is 0.
    5. (C + L)·f = C·z is solved for f, L being the graph Laplacian of w: (Lf)_i = Σ_j w_ij (f_i − f_j). `steps`
       conjugate-gradient steps start from z. All queries are one vector: they share the two factors of a step.
    6. f is resized bilinearly to the image, whole cells over the whole image. The refined values are f alone: what is
       finer than a cell is lost.

    In the published code three things differ from what the formula suggests:
    - the products with S use its diagonal alone, which is about 0.92 for every query: relations between classes do not
      enter (`product='diagonal'`);
    - p is a softmax of cosines without logit scale, and nearly uniform. With more than some 20 queries C is 0.0025
      nearly everywhere, and text has next to no part in the result: it is a smoothing between the edges of the image;
    - 25 steps do not reach the solution, and their number decides how far values spread.

    Three choices are ours, as the formula leaves them open. Grey is 0.299 R + 0.587 G + 0.114 B of the normalised
    channels. The mean of step 4 is over all edges, and has a least value. As S is not symmetric and an edge has no
    direction, 'full' takes the mean of p_iᵀSp_j and p_jᵀSp_i.

    What is held beside the values is some seven tensors (Q, h, w) and one block of refined values.

    Args:
        values (Q, height, width): float32.
        image (3, height, width): normalised.
        rows (Q, E): unit text rows.
        side, steps, product: as of `TLP`.
    """
    if steps == 0:
        return values
    height, width = image.shape[1:]
    cell = (max(1, round(height / side)), max(1, round(width / side)))
    grey = torch.tensordot(constant(GREY, image.device), image.float(), 1)
    z = F.avg_pool2d(values, cell)
    system = _system(z, F.avg_pool2d(grey[None], cell)[0], text_similarities(rows.float()), product)
    f = _solved(z, *system, steps)
    size = max(1, BLOCK_VALUES.get(values.device.type, BLOCK_VALUES['cuda']) // (height * width))
    for start in range(0, len(values), size):
        block = f[None, start : start + size]
        values[start : start + size] = F.interpolate(block, (height, width), mode='bilinear', align_corners=False)[0]
    return values


def text_similarities(rows: Tensor) -> Tensor:
    """Return S (Q, Q): the row softmax of the texts' cosines / 0.5, plus 10 on the diagonal, rows divided by their sum.

    Args:
        rows (Q, E): unit text rows.
    """
    similarities = (rows @ rows.T / TEMPERATURE).softmax(1)
    similarities.diagonal().add_(SELF_WEIGHT)
    return similarities / similarities.sum(1, keepdim=True)


def _system(z: Tensor, grey: Tensor, similarities: Tensor, product: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return C (h, w) and the weights of the edges downwards (h − 1, w) and to the right (h, w − 1).

    Args:
        z (Q, h, w): pooled values.
        grey (h, w): of the pooled image.
        similarities (Q, Q): S.
        product: as of `TLP`.
    """
    p = z.softmax(0)
    if product == 'full':
        related = ((similarities + similarities.T) / 2 @ p.flatten(1)).view_as(p)
    else:
        related = similarities.diagonal()[:, None, None] * p
    confidence = p.amax(0).clamp_min(LEAST_CONFIDENCE).square() * (1 + (p * related).sum(0))
    down, right = grey.diff(dim=0).abs(), grey.diff(dim=1).abs()
    mean = torch.cat([down.flatten(), right.flatten()]).mean().clamp_min(LEAST_DIFFERENCE)
    down = (-CONTRAST * down / mean).exp() * (1 + (p[:, 1:] * related[:, :-1]).sum(0))
    right = (-CONTRAST * right / mean).exp() * (1 + (p[:, :, 1:] * related[:, :, :-1]).sum(0))
    return confidence, down.clamp(0, 1), right.clamp(0, 1)


def _solved(z: Tensor, confidence: Tensor, down: Tensor, right: Tensor, steps: int) -> Tensor:
    """Return f (Q, h, w) after some conjugate-gradient steps from z for (C + L)·f = C·z; z is overwritten.

    Args:
        z (Q, h, w): pooled values.
        confidence, down, right: of `_system`.
        steps: as of `TLP`.
    """
    f, residual = z, -_laplacian(z, down, right)
    direction, squares = residual.clone(), residual.square().sum()
    moving = squares > 0  # until f is the solution; a tensor, so that no step waits for a GPU
    for _ in range(steps):
        changed = _laplacian(direction, down, right).addcmul_(confidence, direction)
        curvature = (direction * changed).sum()
        moving = moving & (squares > 0) & (curvature > 0)
        alpha = torch.where(moving, squares / curvature, 0)
        f.addcmul_(alpha, direction)
        residual.addcmul_(alpha, changed, value=-1)
        before, squares = squares, residual.square().sum()
        direction.mul_(torch.where(moving, squares / before, 0)).add_(residual)
    return f


def _laplacian(field: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return L·field (Q, h, w): at each cell, the sum of its weighted differences from its neighbours."""
    out = torch.zeros_like(field)
    flow = (field[:, 1:] - field[:, :-1]).mul_(down)
    out[:, 1:] += flow
    out[:, :-1] -= flow
    flow = (field[:, :, 1:] - field[:, :, :-1]).mul_(right)
    out[:, :, 1:] += flow
    out[:, :, :-1] -= flow
    return out
