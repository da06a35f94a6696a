"""Random points at a given distance, where AutoAttack's stages start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def on_sphere(
    inputs: Float[Tensor, "batch channels height width"],
    norm: str,
    radius: float,
    rng: Sequence[np.random.Generator],
) -> Float[Tensor, "batch channels height width"]:
    """Return for each sample a point at distance `radius` in `norm`, drawn by its own generator; the box is ignored.

    The direction is uniform on a cube in L-inf and normal in L2 and L1, as in the code of AutoAttack.
    """
    drawn = np.empty(tuple(inputs.shape), dtype=np.float32)
    for row, generator in zip(drawn, rng, strict=True):
        if norm == "linf":
            generator.random(out=row, dtype=np.float32)
            row *= 2
            row -= 1
            length = np.abs(row).max()
        else:
            generator.standard_normal(out=row, dtype=np.float32)
            length = np.linalg.norm(row) if norm == "l2" else np.abs(row).sum()
        row *= np.float32(radius / max(float(length), 1e-30))
    return inputs + torch.from_numpy(drawn).to(inputs.device)
