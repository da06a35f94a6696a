"""The nearest point of a plane within the box, in each norm."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from seatrial.noise.ball import sample_sum

_TURNS = 64
_TINY = 1e-30
_CLOSE = 1e-6


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
    direction = normals.sign() * shifts.sign()
    # To the wall at 1 on the way up, to that at 0 on the way down; a comparison would cost ten of these passes.
    room, weight = direction.clamp(min=0).sub_(points).abs_(), normals.abs()
    # Scaled to a steepest slope of 1, neither tiny gradients nor their squares leave the range of float32.
    steepest = weight.amax((1, 2, 3), keepdim=True).clamp_(min=torch.finfo(weight.dtype).tiny)
    weight, wanted = weight / steepest, shifts.abs() / steepest
    if norm == "l1":
        change = _greedy(room.double(), weight.double(), wanted.double()).to(points.dtype)
    else:
        change = _common(room, weight, wanted, norm)
    return direction * change


def _common(room: Tensor, weight: Tensor, wanted: Tensor, norm: str) -> Tensor:
    """Return min(amount * pace, room), at the amount where its product with `weight` sums to `wanted`.

    The sum is concave and piecewise linear in the amount, so Newton's steps from 0 never pass the root by more than
    rounding; residual times slope falls at least to a quarter in each (about 6 steps end below 1e-6 of `wanted`).
    """
    pace, gain = (weight, weight.square()) if norm == "l2" else (None, weight)
    wall = room if pace is None else room / pace.clamp(min=_TINY)
    change, amount = torch.zeros_like(room), torch.zeros_like(wanted)
    done = torch.zeros_like(wanted, dtype=torch.bool)
    for _ in range(_TURNS):
        left = wanted - sample_sum(weight * change)
        # A sample that has its amount keeps it, whatever others still need.
        done = done | (left <= _CLOSE * wanted)
        if bool(done.all()):
            break
        slope = sample_sum((wall - amount).sign_().clamp_(min=0).mul_(gain))
        beyond = amount + left / slope.clamp(min=_TINY)
        done = done | (slope == 0) | (beyond <= amount)
        amount = torch.where(done, amount, beyond)
        change = torch.minimum(amount if pace is None else amount * pace, room)
    return change


def _greedy(room: Tensor, weight: Tensor, wanted: Tensor) -> Tensor:
    """Return changes that fill the room of the largest weights first, until their product sums to `wanted`."""
    heavy, order = weight.flatten(1).sort(dim=1, descending=True, stable=True)
    space = room.flatten(1).gather(1, order)
    after = (heavy * space).cumsum(1)
    left = wanted.flatten(1) - (after - heavy * space)
    change = torch.minimum((left / heavy.clamp(min=_TINY)).clamp(min=0), space)
    return torch.empty_like(change).scatter_(1, order, change).view_as(room)
