"""The walk of FAB: to a linearized decision boundary, and back towards the input where it is behind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from seatrial.core.predictor import Predictor
from seatrial.noise.apgd_walk import Walked
from seatrial.noise.ball import Ball, sample_sum
from seatrial.noise.gradient import zero_share
from seatrial.noise.hyperplane import nearest_on_plane

Linearize = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From points and the rows of the first batch they belong to, to the gradient of the gap, and the gap.

The gap is a logit less that of the label, so that it is 0 on the boundary between the two classes.
"""

_MOST_OF_INPUT, _OVERSHOOT, _BACK = 0.1, 1.05, 0.9
_CACHED = 3 * 2**14


def boundary_walk(
    predictor: Predictor,
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
    Departures: a misclassified point within the ball ends the search, which in the paper goes on to a nearer one. A
    sample without success comes back as its input.
    """
    count = len(inputs)
    found, fell = inputs.clone(), torch.zeros(count, dtype=torch.bool, device=inputs.device)
    asked, zeros = np.zeros(count, dtype=np.int64), np.full(count, np.nan)
    rows, point = torch.arange(count, device=inputs.device), start
    for step in range(steps + 1):
        # Most points overshoot into another class and are pulled back, so that their gradient would be of no use.
        with torch.no_grad():
            wrong = predictor(point).argmax(1) != labels[rows]
        asked[rows.cpu().numpy()] += 1
        if bool(wrong.any()):
            near = wrong.clone()
            near[wrong] = _within(point[wrong], ball.select(rows[wrong]))
            found[rows[near]], fell[rows[near]] = point[near], True
            back = torch.where(wrong[:, None, None, None], torch.lerp(inputs[rows], point, _BACK), point)
            rows, point = rows[~near], back[~near]
        if not len(rows) or step == steps:
            break
        gradient, gap = linearize(point, rows)
        asked[rows.cpu().numpy()] += 1
        if step == 0:
            zeros[rows.cpu().numpy()] = zero_share(gradient)
        # A few samples at a time, so that what the many passes of a step read stays in the processor's cache.
        parts = (part.split(max(1, _CACHED // point[0].numel())) for part in (point, inputs[rows], gradient, gap))
        point = torch.cat([_stepped(*part, norm) for part in zip(*parts, strict=True)])
    return Walked(found, fell, zeros, asked)


def _within(point: Tensor, ball: Ball) -> Tensor:
    return (ball.project(point) == point).flatten(1).all(1)


def _stepped(point: Tensor, inputs: Tensor, gradient: Tensor, gap: Tensor, norm: str) -> Tensor:
    """Return the mean of the nearest points of the plane to the walk and to the input, a little beyond the plane."""
    count, gap = len(point), gap[:, None, None, None]
    shift = sample_sum(gradient * (point - inputs)) - gap
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
