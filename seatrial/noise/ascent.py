"""Where an attack starts, and the steepest way up, in each norm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seatrial.noise.ball import Ball


def steepest(gradient: Float[Tensor, "batch channels height width"], norm: str) -> Tensor:
    """Return the direction of norm 1 that climbs fastest (L-inf, L2), or the gradient scaled to an L1 norm of 1.

    The steepest direction in L1 is a single entry; the scaled gradient is what the Adversarial Robustness Toolbox and
    so RobustART take. A gradient of zeros gives zeros.
    """
    if norm == "linf":
        return gradient.sign()
    length = torch.linalg.vector_norm(gradient.flatten(1), ord=2 if norm == "l2" else 1, dim=1)
    return gradient / length.clamp(min=1e-30)[:, None, None, None]


def sparse_ascent(
    gradient: Float[Tensor, "batch channels height width"],
    point: Float[Tensor, "batch channels height width"],
    share: float,
) -> Float[Tensor, "batch channels height width"]:
    """Return the direction of L1 norm 1 that spreads over the `share` of entries with the largest gradients.

    Entries that stand at a wall of [0, 1] and would be pushed through it count as zero. A gradient of zeros gives
    zeros. Source: SLIDE, Tramer and Boneh 2019, arXiv 1904.13000; the walls as in foolbox.
    """
    walled = ((point <= 0) & (gradient < 0)) | ((point >= 1) & (gradient > 0))
    free = torch.where(walled, 0.0, gradient)
    size = free.flatten(1).abs()
    kept = max(1, round(share * size.shape[1]))
    least = size.topk(kept, dim=1, sorted=False).values.amin(1) if len(size) else size.new_zeros(0)
    direction = torch.where(free.abs() >= least[:, None, None, None], free.sign(), 0.0)
    return direction / direction.abs().sum((1, 2, 3), keepdim=True).clamp(min=1)


def random_start(
    inputs: Float[Tensor, "batch channels height width"],
    ball: Ball,
    norm: str,
    epsilon: float,
    rng: Sequence[np.random.Generator],
) -> Tensor:
    """Return a point for each sample, drawn uniformly from its ball by its own generator, then moved into the box."""
    shape = tuple(inputs.shape)
    drawn = np.empty(shape, dtype=np.float32)
    for row, generator in zip(drawn, rng, strict=True):
        if norm == "linf":
            generator.random(out=row, dtype=np.float32)
            row *= 2
            row -= 1
            row *= np.float32(epsilon)
            continue
        if norm == "l2":
            generator.standard_normal(out=row, dtype=np.float32)
            length = np.linalg.norm(row)
        else:
            generator.standard_exponential(out=row, dtype=np.float32)
            row *= generator.integers(0, 2, size=row.shape, dtype=np.int8) * np.float32(2) - 1
            length = np.abs(row).sum()
        row *= np.float32(epsilon * generator.random() ** (1 / row.size) / max(float(length), 1e-30))
    return ball.project(torch.from_numpy(drawn).to(inputs.device) + inputs.detach())
