"""PACT: the clip of every activation learns; weights as in DoReFa."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seatrial.core.insert_round import fake
from seatrial.core.precision import Precision
from seatrial.core.recipe import Affine
from seatrial.errors import BadInput
from seatrial.numerics.ranges import MeanSquaredError, Range
from seatrial.quant.dorefa import SquashedWeight, reach
from seatrial.quant.qat import TINY, LearnedRound, QatMethod, start_grid


@final
class _Clipped(torch.autograd.Function):
    """Values on a grid; what is clipped sends its gradient to the scale, all else to the values (eq. 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, grid: Affine) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.ends = [code - int(grid.zero_point) for code in grid.codes]
        return fake(x, replace(grid, scale=scale))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,), (x, scale), (low, high) = gradients, ctx.saved_tensors, ctx.ends
        above, below = x >= high * scale, x < low * scale
        by_scale = (gradient * above).sum() * high
        if low:
            by_scale += (gradient * below).sum() * low
        return gradient.masked_fill(above | below, 0), by_scale, None


@final
class LearnedClip(LearnedRound):
    """A grid between clips that are a parameter: `alpha` for the wider side, the other in step with it."""

    zero_point: Tensor

    def __init__(self, start: Affine) -> None:
        super().__init__()
        self.start, self.reach = start, reach(start)
        self.alpha = nn.Parameter(start.scale * self.reach)
        self.register_buffer("zero_point", start.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        grid = replace(self.start, scale=self._scale(), zero_point=self.zero_point)
        rounded: Tensor = _Clipped.apply(x, grid.scale, grid)
        return rounded

    def grid(self) -> Affine:
        return replace(self.start, scale=self._scale().detach().cpu().clone())

    def _scale(self) -> Tensor:
        return (self.alpha.abs() / self.reach).clamp(min=TINY)


@final
@dataclass(frozen=True, kw_only=True)
class PACT(QatMethod):
    """Parameterized clipping activation (Choi et al. 2018, arXiv 1805.06085): eq. 1 to 3, weights as in DoReFa.

    `decay` is the factor of the squared clips that the loss adds (section 3.2), half of it as in weight decay.
    Raises BadInput for a negative decay.
    Departures: a clip starts at the end of the range that `ranges` chooses on calibration data, not at a constant;
    activations that go below zero are clipped on both sides in step; a clip that training carries below zero counts as
    its absolute value; those of DoReFa for weights.
    """

    decay: float = 2e-4
    ranges: Range = field(default_factory=MeanSquaredError)

    def __post_init__(self) -> None:
        if not self.decay >= 0:
            raise BadInput(f"a decay of {self.decay}", "a number from 0", "give for example 2e-4")

    def on_weight(self, weight: Tensor, precision: Precision) -> LearnedRound:
        """Return the round of squashed weights."""
        return SquashedWeight(weight, precision)

    def on_activation(self, values: Float[Tensor, " count"], precision: Precision) -> LearnedRound:
        """Return a round whose clip learns."""
        return LearnedClip(start_grid(values, precision, self.ranges))

    def penalty(self, module: nn.Module) -> Float[Tensor, ""]:
        """Return half the decay times the sum of squared clips."""
        clips = [part.alpha for part in module.modules() if isinstance(part, LearnedClip)]
        return 0.5 * self.decay * torch.stack([clip.square() for clip in clips]).sum() if clips else torch.zeros(())
