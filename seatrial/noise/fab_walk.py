"""The walk of FAB: to a linearized decision boundary, and back towards the input where it is behind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from seatrial.noise.apgd_walk import Walked
from seatrial.noise.ball import Ball, sample_sum
from seatrial.noise.gradient import zero_share
from seatrial.noise.hyperplane import nearest_on_plane

Linearize = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""From points and the rows of the first batch they belong to, to the gradient of the gap, the logits, and the gap.

The gap is a logit less that of the label, so that it is 0 on the boundary between the two classes.
"""

_MOST_OF_INPUT, _OVERSHOOT, _BACK = 0.1, 1.05, 0.9


def boundary_walk(
    linearize: Linearize,
    start: Float[Tensor, "batch channels height width"],
    inputs: Float[Tensor, "batch channels height width"],
    ball: Ball,
    labels: Int64[Tensor, " batch"],
    *,
    norm: str,
    steps: int,
) -> Walked:
    """Step from `start` to the boundary nearest to `inputs`; a sample leaves at a misclassified point within `ball`.

    Source: Croce and Hein 2020 (arXiv 1907.02044), algorithm 1, with the authors' alpha_max 0.1, eta 1.05 and beta 0.9.
    Departures: a misclassified point within the ball ends the search, which in the paper goes on to a nearer one; a
    point is asked once for both its class and its gradient. A sample without success comes back as its input.
    """
    count = len(inputs)
    found, fell = inputs.clone(), torch.zeros(count, dtype=torch.bool, device=inputs.device)
    asked, zeros = np.zeros(count, dtype=np.int64), np.full(count, np.nan)
    rows, point = torch.arange(count, device=inputs.device), start
    for step in range(steps + 1):
        gradient, logits, gap = linearize(point, rows)
        asked[rows.cpu().numpy()] += 1
        if step == 0:
            zeros = zero_share(gradient)
        wrong = logits.argmax(1) != labels[rows]
        if bool(wrong.any()):
            near = wrong.clone()
            near[wrong] = _within(point[wrong], ball.select(rows[wrong]))
            found[rows[near]], fell[rows[near]] = point[near], True
            keep = ~near
            rows, point, gradient, gap, far = rows[keep], point[keep], gradient[keep], gap[keep], wrong[keep]
            if bool(far.any()) and step < steps:
                point[far] = torch.lerp(inputs[rows[far]], point[far], _BACK)
                gradient[far], _, gap[far] = linearize(point[far], rows[far])
                asked[rows[far].cpu().numpy()] += 1
        if not len(rows) or step == steps:
            break
        point = _stepped(point, inputs[rows], gradient, gap, norm)
    return Walked(found, fell, zeros, asked)


def _within(point: Tensor, ball: Ball) -> Tensor:
    return (ball.project(point) == point).flatten(1).all(1)


def _stepped(point: Tensor, inputs: Tensor, gradient: Tensor, gap: Tensor, norm: str) -> Tensor:
    """Return the mean of the nearest points of the plane to the walk and to the input, a little beyond the plane."""
    count, gap = len(point), gap[:, None, None, None].double()
    shift = sample_sum((gradient * (point - inputs)).double()) - gap
    both, normals = torch.cat([point, inputs]), torch.cat([gradient, gradient])
    change = nearest_on_plane(both, normals, torch.cat([-gap, shift]), norm)
    reach = _length(change, norm).clamp_(min=1e-8)
    share = (reach[:count] / (reach[:count] + reach[count:])).clamp_(max=_MOST_OF_INPUT)
    here, there = torch.add(both, change, alpha=_OVERSHOOT).split(count)
    return torch.lerp(here, there, share).clamp_(0, 1)


def _length(change: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return change.abs().amax((1, 2, 3), keepdim=True)
    return sample_sum(change.square()).sqrt() if norm == "l2" else sample_sum(change.abs())
