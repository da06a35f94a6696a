"""The walk of Auto-PGD in L-inf and L2: momentum, and steps that halve where they stop to pay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from seatrial.noise.ascent import steepest
from seatrial.noise.ball import Ball
from seatrial.noise.gradient import zero_share

Ask = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""From points and the rows of the first batch they belong to, to gradients, logits and values that the walk raises."""

_MOMENTUM = 0.75


@dataclass(frozen=True, eq=False)
class Walked:
    """Where the walks ended: `fallen` says which found a misclassified `point`; `asked` counts forward passes."""

    point: Float[Tensor, "batch channels height width"]
    fallen: Bool[Tensor, " batch"]
    zero_gradient: Float[np.ndarray, " batch"]
    asked: Int64[np.ndarray, " batch"]


def checkpoints(steps: int) -> list[int]:
    """Return the steps after which the walk looks back.

    Source: Croce and Hein 2020, section 3: after 0.22 of all steps, then 0.03 less each time, at least 0.06.
    """
    length, least, less = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    found = []
    position = length
    while position <= steps:
        found.append(position)
        length = max(length - less, least)
        position += length
    return found


def walk(
    ask: Ask,
    start: Float[Tensor, "batch channels height width"],
    ball: Ball,
    labels: Int64[Tensor, " batch"],
    *,
    norm: str,
    epsilon: float,
    steps: int,
    rho: float,
) -> Walked:
    """Climb from `start` within `ball`; a sample leaves the walk at its first misclassified point.

    Others end at their point of largest value. Source: Croce and Hein 2020 (arXiv 2003.01690), algorithm 1.
    Departures: a sample that has fallen is not walked on; the rest of its walk could not change the verdict, and no
    sample looks at another.
    """
    found, fell = start.clone(), torch.zeros(len(start), dtype=torch.bool, device=start.device)
    asked = np.ones(len(start), dtype=np.int64)
    rows = torch.arange(len(start), device=start.device)
    point, previous = start, start
    gradient, logits, value = ask(point, rows)
    zeros = zero_share(gradient)
    best, best_gradient, best_value, value_then = point, gradient, value, value
    size, rises, halved = torch.full_like(value, 2 * epsilon), torch.zeros_like(value), torch.ones_like(value).bool()
    looks, since = set(checkpoints(steps)), 0
    for step in range(steps + 1):
        fallen = logits.argmax(1) != labels
        if bool(fallen.any()):
            found[rows[fallen]], fell[rows[fallen]] = point[fallen], True
            keep = ~fallen
            rows, labels, ball, size = rows[keep], labels[keep], ball.select(keep), size[keep]
            point, previous, gradient, value = point[keep], previous[keep], gradient[keep], value[keep]
            best, best_gradient, best_value = best[keep], best_gradient[keep], best_value[keep]
            rises, halved, value_then = rises[keep], halved[keep], value_then[keep]
        if not len(rows) or step == steps:
            break
        share = _MOMENTUM if step else 1.0
        ahead = ball.project(torch.addcmul(point, size[:, None, None, None], steepest(gradient, norm)))
        ahead = torch.lerp(point, ahead, share).add_(point - previous, alpha=1 - share)
        previous, point = point, ball.project(ahead)
        before = value
        gradient, logits, value = ask(point, rows)
        asked[rows.cpu().numpy()] += 1
        since += 1
        rises += value > before
        better = value > best_value
        pick = better[:, None, None, None]
        best, best_gradient = torch.where(pick, point, best), torch.where(pick, gradient, best_gradient)
        best_value = torch.where(better, value, best_value)
        if step + 1 in looks:
            stuck = (rises <= rho * since) | (~halved & (value_then >= best_value))
            # What has just fallen stays where it is, so that it can be taken out above.
            pick = (stuck & (logits.argmax(1) == labels))[:, None, None, None]
            point, gradient = torch.where(pick, best, point), torch.where(pick, best_gradient, gradient)
            size = torch.where(stuck, size / 2, size)
            halved, value_then = stuck, best_value
            rises, since = torch.zeros_like(rises), 0
    found[rows] = best
    return Walked(found, fell, zeros, asked)
