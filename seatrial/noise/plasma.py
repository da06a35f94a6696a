"""Plasma: a random landscape with detail at every scale."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def plasma(side: int, decay: float, *, rng: np.random.Generator) -> Float[np.ndarray, "side side"]:
    """Return float32 heights from 0 to 1 on a torus of `side` (a power of 2), rougher for a smaller `decay`.

    Diamond-square: every round doubles the grid; the middle of a square, then of each edge, gets the mean of its four
    neighbors and a uniform change of up to the square of a range that starts at 100 and falls by `decay` a round.
    Source: hendrycks/robustness, make_imagenet_c.py (Fournier et al. 1982).
    """
    heights = np.zeros((1, 1), dtype=np.float32)
    wide = 100.0

    def change(shape: tuple[int, ...]) -> Float[np.ndarray, "rows columns"]:
        draw = rng.random(shape, dtype=np.float32)
        draw *= np.float32(2 * wide * wide)
        draw -= np.float32(wide * wide)
        return draw

    while len(heights) < side:
        count = len(heights)
        below, right = np.roll(heights, -1, 0), np.roll(heights, -1, 1)
        middle = heights + below
        middle += right
        middle += np.roll(below, -1, 1)
        middle /= 4
        middle += change((count, count))
        upper = middle + np.roll(middle, 1, 0)
        upper += heights
        upper += right
        left = middle + np.roll(middle, 1, 1)
        left += heights
        left += below
        finer = np.empty((2 * count, 2 * count), dtype=np.float32)
        finer[::2, ::2], finer[1::2, 1::2] = heights, middle
        finer[::2, 1::2] = upper / 4 + change((count, count))
        finer[1::2, ::2] = left / 4 + change((count, count))
        heights, wide = finer, wide / decay
    heights -= heights.min()
    most = heights.max()
    return heights / most if most > 0 else heights
