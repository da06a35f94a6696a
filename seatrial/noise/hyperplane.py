"""The nearest point of a plane within the box, in each norm."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from seatrial.noise.ball import sample_sum

_TURNS = 64
_TINY = 1e-300


def nearest_on_plane(
    points: Float[Tensor, "batch channels height width"],
    normals: Float[Tensor, "batch channels height width"],
    shifts: Float[Tensor, "batch 1 1 1"],
    norm: str,
) -> Float[Tensor, "batch channels height width"]:
    """Return the change of least `norm` that moves points of the box [0, 1] by `shifts` along normal . x, in the box.

    Where the box ends before, every entry goes as far as the box allows. Source: Croce and Hein 2020 (arXiv
    1907.02044), section 2.3: in L-inf all entries change by one amount, in L2 in proportion to the normal, each up to
    its wall; in L1 the entries of the steepest normal go to their walls, one after another.
    """
    direction = normals.sign() * shifts.sign().to(normals.dtype)
    room, weight = torch.where(direction > 0, 1 - points, points).double(), normals.double().abs()
    wanted = shifts.double().abs()
    change = _greedy(room, weight, wanted) if norm == "l1" else _common(room, weight, wanted, norm)
    return direction * change.to(points.dtype)


def _common(room: Tensor, weight: Tensor, wanted: Tensor, norm: str) -> Tensor:
    """Return min(amount * pace, room), at the amount where its product with `weight` sums to `wanted`.

    The sum is concave and piecewise linear in the amount, so Newton's steps from 0 never pass the root; residual times
    slope falls at least to a quarter in each, so that 64 of them reach the end of float64 (about 6 are needed).
    """
    pace = weight if norm == "l2" else (weight > 0).double()
    gain = weight * pace
    wall = room / pace.clamp(min=_TINY)
    amount = torch.zeros_like(wanted)
    done = torch.zeros_like(wanted, dtype=torch.bool)
    for _ in range(_TURNS):
        slope = sample_sum(torch.where(wall > amount, gain, 0.0))
        left = wanted - sample_sum(weight * torch.minimum(amount * pace, room))
        beyond = amount + left / slope.clamp(min=_TINY)
        # A sample that has its amount keeps it, whatever others still need.
        done = done | (left <= 1e-12 * wanted) | (slope == 0) | (beyond <= amount)
        amount = torch.where(done, amount, beyond)
        if bool(done.all()):
            break
    return torch.minimum(amount * pace, room)


def _greedy(room: Tensor, weight: Tensor, wanted: Tensor) -> Tensor:
    """Return changes that fill the room of the largest weights first, until their product sums to `wanted`."""
    heavy, order = weight.flatten(1).sort(dim=1, descending=True, stable=True)
    space = room.flatten(1).gather(1, order)
    after = (heavy * space).cumsum(1)
    left = wanted.flatten(1) - (after - heavy * space)
    change = torch.minimum((left / heavy.clamp(min=_TINY)).clamp(min=0), space)
    return torch.empty_like(change).scatter_(1, order, change).view_as(room)
