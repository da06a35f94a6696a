"""Grids whose ends are percentiles of what was seen, the percentile with the least squared error of a few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seatrial.core.grids import Affine, Logarithmic
from seatrial.core.insert_round import fake
from seatrial.core.precision import Precision
from seatrial.core.qdq import shaped
from seatrial.errors import BadInput
from seatrial.numerics.ranges import Observed, Range, grid_error, weight_grid

SHARES = (0.999, 0.9999, 0.99999)
"""The percentiles of the authors of RepQ-ViT."""
_NARROWEST = 1e-4
"""The least step of a channel as a share of the widest one's: a channel may not change at all."""


def check_shares(shares: Sequence[float]) -> None:
    """Raise BadInput for shares that are none."""
    if not shares or not all(0.5 < share <= 1 for share in shares):
        raise BadInput(f"shares {tuple(shares)}", "some above 0.5 and at most 1", "0.999 is one of the authors'")


@final
@dataclass(frozen=True)
class BestPercentile(Range):
    """The bounds beyond which a share of values lies on either side, for the share whose grid errs least.

    From a histogram. Source: Li et al. 2023 (RepQ-ViT), the authors' code.
    """

    shares: tuple[float, ...] = SHARES
    needs_counts: bool = True

    def __post_init__(self) -> None:
        check_shares(self.shares)

    def choose(self, observed: Observed, precision: Precision) -> tuple[float, float]:
        low, high = observed.low_high
        if observed.histogram is None or high <= low:
            return low, high
        (centers, weights), width = observed.histogram.occupied(), observed.histogram.width
        found = []
        for share in self.shares:
            ends = observed.histogram.ends(1 - share, share)
            found.append((grid_error(ends, centers, weights, width, precision), ends))
        return min(found, key=lambda pair: pair[0])[1]


@dataclass(frozen=True, eq=False)
class ChannelGrids:
    """An unsigned affine grid for each channel, float64: value = scale * (code - zero_point).

    Zero points are whole numbers, but need not be codes: a channel may lie to one side of zero. Without `shift` they
    are 0 and codes have a sign.
    """

    scale: Float[Tensor, " channels"]
    zero_point: Float[Tensor, " channels"]


def channel_grids(
    rows: Float[Tensor, "rows channels"], bits: int, *, shift: bool = True, shares: Sequence[float] = SHARES
) -> ChannelGrids | None:
    """Return the grids of channels, each with its best share; None where no channel changes.

    Source: Li et al. 2023, section 4.2 (channel-wise calibration).
    """
    values = rows.double()
    top = 2**bits - 1 if shift else 2 ** (bits - 1) - 1
    bottom = 0 if shift else -top
    best: ChannelGrids | None = None
    least: Tensor = torch.zeros(())
    for low, high in _ends(values, 0, shares):
        scale = (high - low) / top if shift else torch.maximum(-low, high) / top
        if not bool(scale.max() > 0):
            continue
        scale = scale.clamp(min=_NARROWEST * float(scale.max()))
        zero = (-low / scale).round() if shift else torch.zeros_like(scale)
        codes = ((values / scale).round() + zero).clamp(bottom, top)
        error = (codes.sub_(zero).mul_(scale) - values).square_().sum(0)
        if best is None:
            best, least = ChannelGrids(scale, zero), error
        else:
            better = error < least
            best = ChannelGrids(torch.where(better, scale, best.scale), torch.where(better, zero, best.zero_point))
            least = torch.minimum(error, least)
    return best


def percentile_weight_grid(weight: Tensor, wanted: Precision, shares: Sequence[float] = SHARES) -> Affine:
    """Return the grid of a weight as it is asked for, read off what lies within its best share, channel by channel."""
    axis = -1 if wanted.axis is None else wanted.axis
    rows = weight.detach().reshape(1, -1) if axis < 0 else weight.detach().transpose(0, axis).flatten(1)
    best: Affine | None = None
    least: Tensor = torch.zeros(())
    for low, high in _ends(rows, 1, shares):
        ends = (low[0], high[0]) if axis < 0 else (shaped(low, weight, axis), shaped(high, weight, axis))
        grid = weight_grid(weight.detach().clamp(*ends), wanted)
        squares = (fake(weight.detach(), grid) - weight.detach()).double().square_()
        error = squares.sum() if axis < 0 else squares.transpose(0, axis).flatten(1).sum(1)
        better = error < least
        if best is None:
            best, least = grid, error
        elif axis < 0:
            best = grid if bool(better) else best
        else:
            scale = torch.where(better, grid.scale, best.scale)
            best = replace(grid, scale=scale, zero_point=torch.where(better, grid.zero_point, best.zero_point))
        least = torch.minimum(error, least)
    assert best is not None, "no share"
    return best


def logarithmic_grid(
    values: Sequence[Tensor], bits: int, steps: int = 2, shares: Sequence[float] = SHARES
) -> Logarithmic:
    """Return the logarithmic grid whose largest value is the best share of what was seen, values from 0 up."""
    together = torch.cat([value.detach().flatten() for value in values]).float()
    found: list[tuple[float, Logarithmic]] = []
    for top in np.quantile(together.numpy(), sorted(shares)):
        grid = Logarithmic(bits, torch.tensor(float(top) or 1.0), steps)
        found.append((float((fake(together, grid) - together).double().square_().sum()), grid))
    return min(found, key=lambda pair: pair[0])[1]


def _ends(rows: Tensor, axis: int, shares: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    """Return for each share the values beyond which the rest lies on either side, along an axis."""
    ends = [end for share in shares for end in (1 - share, share)]
    found = torch.from_numpy(np.quantile(rows.numpy(), ends, axis=axis)).to(rows.dtype)
    return [(found[2 * number], found[2 * number + 1]) for number in range(len(shares))]
