"""The walk of Auto-PGD: momentum, and steps that halve where they stop to pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from seatrial.core.predictor import Predictor
from seatrial.errors import BadInput
from seatrial.noise.ascent import steepest
from seatrial.noise.ball import Ball
from seatrial.noise.gradient import objective_gradient, zero_share


class Objective(Protocol):
    """From logits [batch, classes] and the rows of the first batch they belong to, to values that the walk raises."""

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor: ...


_MOMENTUM = 0.75


@dataclass(frozen=True, eq=False)
class Walked:
    """Where the walks ended: `fallen` says which found a misclassified `point`, the others are at their best value."""

    point: Float[Tensor, "batch 3 height width"]
    fallen: Bool[Tensor, " batch"]
    zero_gradient: Float[np.ndarray, " batch"]
    queries: Int64[np.ndarray, " batch"]


def checkpoints(steps: int) -> list[int]:
    """Return the steps at which the walk looks back.

    Source: Croce and Hein 2020, section 3: after 0.22 of all steps, then 0.03 less each time, at least 0.06.
    """
    length, least, less = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    found = []
    position = 0
    while position + length <= steps:
        position += length
        found.append(position)
        length = max(length - less, least)
    return found


def walk(
    predictor: Predictor,
    start: Float[Tensor, "batch 3 height width"],
    ball: Ball,
    labels: Int64[Tensor, " batch"],
    objective: Objective,
    *,
    norm: str,
    epsilon: float,
    steps: int,
    rho: float,
) -> Walked:
    """Climb `objective` from `start` within `ball`; a sample leaves the walk at its first misclassified point.

    Source: Croce and Hein 2020 (arXiv 2003.01690), algorithm 1. Departures: a sample that has fallen is not walked on;
    the rest of its walk could not change the verdict, and no sample looks at another.
    """
    count = len(start)
    best_found, fallen_all = start.clone(), torch.zeros(count, dtype=torch.bool)
    queries = np.ones(count, dtype=np.int64)
    rows = torch.arange(count)
    point, previous = start, start
    gradient, logits, value = objective_gradient(predictor, point, partial(objective, rows=rows))
    zeros = zero_share(gradient)
    best, best_gradient, best_value = point, gradient, value
    size = torch.full((count,), 2 * epsilon)
    rises, halved, value_then = torch.zeros(count), torch.ones(count, dtype=torch.bool), value
    looks, since = set(checkpoints(steps)), 0
    for step in range(steps + 1):
        fallen = logits.argmax(1) != labels
        if bool(fallen.any()):
            best_found[rows[fallen]], fallen_all[rows[fallen]] = point[fallen], True
            keep = ~fallen
            rows, labels, ball, size = rows[keep], labels[keep], ball.select(keep), size[keep]
            point, previous, gradient, value = point[keep], previous[keep], gradient[keep], value[keep]
            best, best_gradient, best_value = best[keep], best_gradient[keep], best_value[keep]
            rises, halved, value_then = rises[keep], halved[keep], value_then[keep]
        if not len(rows) or step == steps:
            break
        share = _MOMENTUM if step else 1.0
        ahead = ball.project(point + size[:, None, None, None] * steepest(gradient, norm))
        moved = point + (ahead - point) * share + (point - previous) * (1 - share)
        previous, point = point, ball.project(moved)
        new_gradient, logits, new_value = objective_gradient(predictor, point, partial(objective, rows=rows))
        queries[rows.numpy()] += 1
        since += 1
        rises += new_value > value
        gradient, value = new_gradient, new_value
        better = value > best_value
        pick = better[:, None, None, None]
        best, best_gradient = torch.where(pick, point, best), torch.where(pick, gradient, best_gradient)
        best_value = torch.where(better, value, best_value)
        if step + 1 in looks:
            stuck = (rises <= rho * since) | (~halved & (value_then >= best_value))
            halved, value_then = stuck, best_value
            size = torch.where(stuck, size / 2, size)
            pick = stuck[:, None, None, None]
            point, gradient = torch.where(pick, best, point), torch.where(pick, best_gradient, gradient)
            rises, since = torch.zeros_like(rises), 0
    best_found[rows] = best
    return Walked(best_found, fallen_all, zeros, queries)


def linf_start(
    inputs: Float[Tensor, "batch 3 height width"], ball: Ball, epsilon: float, rng: Sequence[np.random.Generator]
) -> Tensor:
    """Return a random point of each sample's L-inf ball whose largest change is epsilon, as AutoAttack starts."""
    drawn = np.empty(tuple(inputs.shape), dtype=np.float32)
    for row, generator in zip(drawn, rng, strict=True):
        generator.random(out=row, dtype=np.float32)
        row *= 2
        row -= 1
        row *= np.float32(epsilon) / np.abs(row).max()
    return ball.project(inputs.detach() + torch.from_numpy(drawn))


def require_linf(norm: str, name: str) -> None:
    """Raise BadInput for a norm that this attack does not walk in yet."""
    if norm != "linf":
        raise BadInput(f"{name} in {norm}", "linf", "ask for pgd or mim there, which know l2 and l1")
