"""LSQ: the step of every grid learns with the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seatrial.core.precision import Precision
from seatrial.core.qdq import qdq
from seatrial.core.recipe import Affine
from seatrial.numerics.ranges import MinMax
from seatrial.quant.qat import TINY, LearnedRound, QatMethod, by_channel, start_grid


@final
class _Scaled(torch.autograd.Function):
    """The identity, with a gradient that is multiplied: the forward value keeps its last bit."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


@final
class LearnedStep(LearnedRound):
    """A grid whose step is a parameter; bits, sign and zero point stay.

    `count` is how many values share a step; None: those of one sample.
    """

    zero_point: Tensor

    def __init__(self, start: Affine, count: int | None) -> None:
        super().__init__()
        self.start = start
        self.step = nn.Parameter(start.scale.clone())
        reach = start.codes[1] - int(start.zero_point.flatten()[0])
        self.count, self.reach = count, max(1, reach)
        self.register_buffer("zero_point", start.zero_point)

    @property
    def scale(self) -> Tensor:
        """The step as it is used: positive."""
        return self.step.abs().clamp(min=TINY)

    def forward(self, x: Tensor) -> Tensor:
        axis = -1 if self.start.axis is None else self.start.axis
        count = x.numel() // len(x) if self.count is None else self.count
        scale = _Scaled.apply(self.scale, 1 / math.sqrt(count * self.reach))
        return qdq(x, scale, self.zero_point, *self.start.codes, axis)

    def grid(self) -> Affine:
        start, scale = self.start, self.scale.detach().cpu().clone()
        return Affine(start.bits, start.signed, scale, start.zero_point, start.axis, start.narrow)


@final
@dataclass(frozen=True, kw_only=True)
class LSQ(QatMethod):
    """Learned step size quantization (Esser et al. 2020, arXiv 1902.08153).

    A step s starts at 2 * mean |v| / sqrt(Q), Q the highest code (section 2.1), and gets the gradient of eq. 3, times
    1 / sqrt(N * Q) with N the number of values that share it (section 2.2); values get that of eq. 5.
    Departures: N is that of a channel where each channel has a step; codes of weights are symmetric; activations that
    go below zero get a sign, or the zero point of their range on calibration data, which stays (then the step starts
    at that of the range); a step that training carries below zero counts as its absolute value.
    """

    def on_weight(self, weight: Tensor, precision: Precision) -> LearnedRound:
        """Return a round with one step a tensor, or one a channel of the precision's axis."""
        rows = by_channel(weight.detach().float(), precision)
        highest = 2 ** (precision.bits - 1) - 1
        step = (2 * rows.abs().mean(1) / math.sqrt(highest)).clamp(min=TINY)
        scale = step.squeeze(0) if precision.axis is None else step
        zero = torch.zeros_like(scale, dtype=torch.int64)
        grid = Affine(precision.bits, True, scale, zero, precision.axis, precision.narrow)
        return LearnedStep(grid, rows.shape[1])

    def on_activation(self, values: Float[Tensor, " count"], precision: Precision) -> LearnedRound:
        """Return a round with one step for the tensor."""
        grid = start_grid(values, precision, MinMax())
        if int(grid.zero_point) == 0:
            step = 2 * values.abs().mean() / math.sqrt(grid.codes[1])
            grid = Affine(grid.bits, grid.signed, step.clamp(min=TINY), grid.zero_point, None, grid.narrow)
        return LearnedStep(grid, None)

    def penalty(self, module: nn.Module) -> Float[Tensor, ""]:
        """Return zero: LSQ adds nothing to the loss."""
        return torch.zeros(())
