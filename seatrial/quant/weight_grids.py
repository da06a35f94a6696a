"""Grids for each run of values of a weight's rows: min-max, or the range with the least error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from seatrial.core.further_rounds import in_groups
from seatrial.core.grids import Grouped
from seatrial.core.precision import Precision
from seatrial.errors import BadInput


@dataclass(frozen=True)
class RangeSearch:
    """Which shares of a group's range are tried, and how an error counts: |rounded - value| ** power, summed up.

    Source: Frantar et al. 2022, the `mse` option of the authors' code, whose numbers these are.
    """

    steps: int = 100
    least: float = 0.2
    power: float = 2.4


def grouped_grid(
    weight: Float[Tensor, "rows columns"], wanted: Precision, search: RangeSearch | None = None
) -> Grouped:
    """Return the grid of each `wanted.group` columns of a weight's rows, unsigned codes with a zero point.

    From the range of a group, widened to hold zero; with `search`, from the share of it that has the least error. A
    symmetric grid has its zero point in the middle of the codes and reaches as far as the largest absolute value.
    Raises BadInput for a weight that is no matrix or not finite, and for a signed precision.

    Source: Frantar et al. 2022 and the authors' code (affine grids of groups, both kinds).
    """
    if wanted.group is None or wanted.group < 1 or weight.ndim != 2:
        came = f"groups of {wanted.group} for a weight of shape {tuple(weight.shape)}"
        raise BadInput(came, "a group of at least 1 for a matrix", "ask for groups of linear weights alone")
    if wanted.signed:
        raise BadInput("signed codes for groups of a weight", "unsigned ones", "leave the sign out")
    if not bool(weight.isfinite().all()):
        raise BadInput("a weight that is not finite", "finite weights", "check the model file")
    groups = in_groups(weight.detach().float(), wanted.group)
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    if wanted.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    scale, zero = _affine(low, high, wanted)
    if search is None:
        return Grouped(wanted.bits, scale, zero, wanted.group)
    least = torch.full_like(scale, torch.inf)
    for step in range(int(search.steps * (1 - search.least))):
        share = 1 - step / search.steps
        tried, origin = _affine(low * share, high * share, wanted)
        codes = (groups / tried[..., None]).round_().add_(origin[..., None]).clamp_(0, 2**wanted.bits - 1)
        off = codes.sub_(origin[..., None]).mul_(tried[..., None]).sub_(groups).abs_()
        error = off.pow_(search.power).sum(2)
        better = error < least
        least = torch.where(better, error, least)
        scale, zero = torch.where(better, tried, scale), torch.where(better, origin, zero)
    return Grouped(wanted.bits, scale, zero, wanted.group)


def _affine(low: Tensor, high: Tensor, wanted: Precision) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of the ranges; a range that is empty or too small for a float has scale 1."""
    top = 2**wanted.bits - 1
    scale = (high - low) / top
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
    if wanted.symmetric:
        return scale, torch.full_like(scale, (top + 1) // 2, dtype=torch.int64)
    return scale, (-low / scale).round().clamp(0, top).long()
