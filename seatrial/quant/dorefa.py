"""DoReFa: weights squashed by tanh, activations clipped at a constant, both rounded straight through."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seatrial.core.insert_round import fake
from seatrial.core.precision import Precision
from seatrial.core.recipe import Affine
from seatrial.errors import BadInput
from seatrial.numerics.ranges import MeanSquaredError, Range
from seatrial.quant.qat import TINY, LearnedRound, QatMethod, start_grid


@final
class SquashedWeight(LearnedRound):
    """A grid for `gain` * tanh(w) / max |tanh(w)|; one scale for the tensor, given for each channel where asked for."""

    gain: Tensor

    def __init__(self, weight: Tensor, precision: Precision) -> None:
        super().__init__()
        self.bits, self.axis, self.narrow = precision.bits, precision.axis, precision.narrow
        self.channels = 1 if precision.axis is None else weight.shape[precision.axis]
        start = weight.detach().float()
        squashed = _squashed(start)
        # Least squares: the factor that brings the squashed weight nearest to the weight.
        gain = (squashed * start).sum() / squashed.square().sum().clamp(min=TINY)
        self.register_buffer("gain", gain.clamp(min=TINY))

    def forward(self, x: Tensor) -> Tensor:
        return fake(_squashed(x) * self.gain, self._grid(self.gain))

    def grid(self) -> Affine:
        return self._grid(self.gain.detach().cpu())

    def _grid(self, gain: Tensor) -> Affine:
        scale = gain / (2 ** (self.bits - 1) - 1)
        scale = scale.expand(self.channels).clone() if self.axis is not None else scale
        zero = torch.zeros_like(scale, dtype=torch.int64)
        return Affine(self.bits, True, scale, zero, self.axis, self.narrow)


def _squashed(weight: Tensor) -> Tensor:
    squashed = weight.tanh()
    return squashed / squashed.abs().amax().clamp(min=TINY)


@final
class ConstantClip(LearnedRound):
    """A grid that stays as it is."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: Affine) -> None:
        super().__init__()
        self.start = grid
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero_point", grid.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        return fake(x, replace(self.start, scale=self.scale, zero_point=self.zero_point))

    def grid(self) -> Affine:
        return self.start


@final
@dataclass(frozen=True, kw_only=True)
class DoReFa(QatMethod):
    """DoReFa-Net (Zhou et al. 2016, arXiv 1606.06160): eq. 9 for weights, eq. 11 for activations, gradients of eq. 6.

    `clip` is where activations are clipped: 1 in the paper, where networks are trained from the start; "seen", the
    default, takes the end of the range of least squared error on calibration data, since a network that was trained
    without clipping has larger activations.
    Raises BadInput for a clip that is not above zero.
    Departures: codes of weights are symmetric with zero among them (2^k - 1 levels, not 2^k around a half), as integer
    kernels want them; weights keep their magnitude by a constant factor, since no batch norm need stand behind them;
    activations that go below zero are clipped there too; gradients are not quantized.
    """

    clip: float | Literal["seen"] = "seen"
    ranges: Range = field(default_factory=MeanSquaredError)

    def __post_init__(self) -> None:
        if self.clip != "seen" and not self.clip > 0:
            raise BadInput(f"a clip at {self.clip}", "a number above 0, or 'seen'", "the paper clips at 1")

    def on_weight(self, weight: Tensor, precision: Precision) -> LearnedRound:
        """Return the round of squashed weights."""
        return SquashedWeight(weight, precision)

    def on_activation(self, values: Float[Tensor, " count"], precision: Precision) -> LearnedRound:
        """Return a round that stays as it is."""
        grid = start_grid(values, precision, self.ranges)
        if self.clip != "seen":
            scale = torch.full_like(grid.scale, self.clip / reach(grid))
            grid = replace(grid, scale=scale)
        return ConstantClip(grid)

    def penalty(self, module: nn.Module) -> Float[Tensor, ""]:
        """Return zero: DoReFa adds nothing to the loss."""
        return torch.zeros(())


def reach(grid: Affine) -> int:
    """Return how many steps the wider side of a grid has; as many on both where it lies around zero."""
    low, high = grid.codes
    zero = int(grid.zero_point)
    return high if zero == 0 else max(high - zero, zero - low)
