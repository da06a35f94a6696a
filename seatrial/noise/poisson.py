"""Poisson draws whose means are levels of a picture, by tables."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import UInt8
from scipy.stats import poisson

_GUIDE_BITS = 12


def poisson_levels(
    picture: UInt8[np.ndarray, "height width 3"], photons: int, *, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """Return one draw for each value v of `picture`, with mean v / 255 * photons, for at most 100 `photons`.

    Source: inversion with a guide table (Chen and Asau 1974): the upper bits of a uniform 32-bit number find the
    answer or the few candidates around a step of the distribution function, the rest decides between those.
    """
    low, high, edges = _tables(photons)
    uniform = rng.integers(0, 2**32, size=picture.size, dtype=np.uint32)
    cell = picture.ravel().astype(np.int32) << _GUIDE_BITS
    cell |= (uniform >> np.uint32(32 - _GUIDE_BITS)).astype(np.int32)
    counts = low.take(cell)
    open_ = np.flatnonzero(counts != high.take(cell))
    while len(open_):
        values, reached = picture.ravel()[open_], counts[open_]
        open_ = open_[uniform[open_] >= edges[values, reached]]
        counts[open_] += 1
    return counts.reshape(picture.shape)


@lru_cache(maxsize=8)
def _tables(photons: int) -> tuple[Any, Any, Any]:
    """Return the least and the largest answer by (level, upper bits), and by (level, k) where k + 1 begins."""
    means = np.arange(256) / 255 * photons
    kept = int(poisson.ppf(1 - 2.0**-40, photons)) + 2
    function = poisson.cdf(np.arange(kept)[None], means[:, None])
    edges = np.minimum(np.ceil(function * 2.0**32), 2.0**32).astype(np.uint64)
    edges[:, -1] = 2**32
    starts = np.arange(2**_GUIDE_BITS, dtype=np.uint64) << np.uint64(32 - _GUIDE_BITS)
    last = starts + np.uint64(2 ** (32 - _GUIDE_BITS) - 1)
    low = np.stack([np.searchsorted(row, starts, side="right") for row in edges]).astype(np.uint8)
    high = np.stack([np.searchsorted(row, last, side="right") for row in edges]).astype(np.uint8)
    return low.ravel(), high.ravel(), edges
