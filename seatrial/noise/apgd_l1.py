"""The walk of Auto-PGD in L1: sparse steps, through larger balls first."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from seatrial.noise.apgd_walk import Ask, Walked
from seatrial.noise.ball import Ball, ball_around, sample_sum
from seatrial.noise.gradient import zero_share

_RADII = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
"""Radii of the balls, in epsilons, and the share of the steps in each."""

_THINNER, _SHRINK, _LEAST, _SHED, _LOOKS = 1.5, 1.5, 0.1, 0.95, 0.04


def sparse_walk(
    ask: Ask,
    inputs: Float[Tensor, "batch channels height width"],
    labels: Int64[Tensor, " batch"],
    *,
    epsilon: float,
    steps: int,
    rng: Sequence[np.random.Generator],
) -> Walked:
    """Climb within the L1 balls of 3, 2 and 1 epsilon in turn, each from the best point of the one before.

    Only in the last ball does a sample leave at its first misclassified point. Source: Croce and Hein 2021 (arXiv
    2103.01208), algorithm 1 and section 4.3, with the settings of AutoAttack. Departures: as in `walk`.
    """
    drawn = np.empty(tuple(inputs.shape), dtype=np.float32)
    for row, generator in zip(drawn, rng, strict=True):
        generator.standard_normal(out=row, dtype=np.float32)
    point = inputs + torch.from_numpy(drawn).to(inputs.device)
    lengths = [math.ceil(share * steps) for _, share in _RADII[:-1]]
    lengths.append(max(steps - sum(lengths), 0))
    fell, zeros = torch.zeros(len(inputs), dtype=torch.bool), np.full(len(inputs), np.nan)
    asked = np.zeros(len(inputs), dtype=np.int64)
    for number, ((factor, _), length) in enumerate(zip(_RADII, lengths, strict=True)):
        radius = min(factor * epsilon, float(inputs[0].numel()))
        ball = ball_around("l1", inputs, radius)
        leave = number == len(_RADII) - 1
        walked = _in_ball(ask, ball.project(point), inputs, ball, labels, radius, length, leave)
        point, fell = walked.point, walked.fallen
        zeros = walked.zero_gradient if number == 0 else zeros
        asked += walked.asked
    return Walked(point, fell, zeros, asked)


def _in_ball(
    ask: Ask, start: Tensor, inputs: Tensor, ball: Ball, labels: Tensor, epsilon: float, steps: int, leave: bool
) -> Walked:
    """Climb in one ball; with `leave`, fallen samples go."""
    count, entries = len(start), inputs[0].numel()
    found, fell = start.clone(), torch.zeros(count, dtype=torch.bool, device=start.device)
    asked = np.ones(count, dtype=np.int64)
    rows, point = torch.arange(count, device=start.device), start
    gradient, logits, value = ask(point, rows)
    zeros = zero_share(gradient)
    best, best_gradient, best_value = point, gradient, value
    size = torch.full_like(value, epsilon)
    changed = _changed(point, inputs)
    dense = changed / entries / _THINNER
    every = max(int(_LOOKS * steps), 1)
    for step in range(steps + 1):
        fallen = (logits.argmax(1) != labels) & leave
        if bool(fallen.any()):
            found[rows[fallen]], fell[rows[fallen]] = point[fallen], True
            keep = ~fallen
            rows, labels, ball, inputs = rows[keep], labels[keep], ball.select(keep), inputs[keep]
            point, gradient, size, changed, dense = point[keep], gradient[keep], size[keep], changed[keep], dense[keep]
            best, best_gradient, best_value = best[keep], best_gradient[keep], best_value[keep]
        if not len(rows) or step == steps:
            break
        point = ball.project(point + size[:, None, None, None] * _sparse(gradient, dense))
        gradient, logits, value = ask(point, rows)
        asked[rows.cpu().numpy()] += 1
        better = value > best_value
        pick = better[:, None, None, None]
        best, best_gradient = torch.where(pick, point, best), torch.where(pick, gradient, best_gradient)
        best_value = torch.where(better, value, best_value)
        if (step + 1) % every == 0:
            now = _changed(best, inputs)
            shed = now / changed.clamp(min=1) < _SHED
            size = torch.where(shed, epsilon, (size / _SHRINK).clamp(min=_LEAST * epsilon))
            changed, dense = now, now / entries / _THINNER
            # What has just fallen stays where it is, so that it can be taken out above.
            pick = (shed & ~((logits.argmax(1) != labels) & leave))[:, None, None, None]
            point, gradient = torch.where(pick, best, point), torch.where(pick, best_gradient, gradient)
    found[rows] = best
    return Walked(found, fell, zeros, asked)


def _changed(point: Tensor, inputs: Tensor) -> Tensor:
    """Return how many entries of each sample differ from its input."""
    return torch.count_nonzero(point != inputs, dim=(1, 2, 3)).to(point.dtype)


def _sparse(gradient: Tensor, share: Tensor) -> Tensor:
    """Return the signs of the largest `share` of each sample's gradient, scaled to an L1 norm of 1."""
    size = gradient.abs().flatten(1)
    entries = size.shape[1]
    place = ((1 - share) * entries).long().clamp(0, entries - 1)
    least = size.sort(dim=1).values.gather(1, place[:, None])[:, :, None, None]
    signs = torch.where(gradient.abs() >= least, gradient.sign(), 0.0)
    return signs / sample_sum(signs.abs()).clamp(min=1)
