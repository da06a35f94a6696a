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
