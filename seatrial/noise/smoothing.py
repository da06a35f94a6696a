"""Gaussian smoothing as scikit-image does it, in float32."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float

_WIDE_PX = 32
"""From this radius on a product with a band matrix is faster than a filter."""


def smoothed(
    field: Float[np.ndarray, "height width *channels"],
    sigma_px: float | tuple[float, float],
    *,
    truncate: float = 4.0,
    reflect: bool = False,
) -> Float[np.ndarray, "height width *channels"]:
    """Return float32 `field` under a Gaussian of `sigma_px` (or down and across), cut off at `truncate` deviations.

    Beyond the border the edge value is repeated, or with `reflect` the field is mirrored about the border
    (d c b a | a b c d). Equal to `skimage.filters.gaussian` with mode nearest or reflect up to round-off.
    """
    down_px, across_px = sigma_px if isinstance(sigma_px, tuple) else (sigma_px, sigma_px)
    rows, columns = (int(truncate * sigma + 0.5) for sigma in (down_px, across_px))
    if max(rows, columns) >= _WIDE_PX and field.ndim == 2:
        down = _band(field.shape[0], down_px, rows, reflect)
        across = _band(field.shape[1], across_px, columns, reflect)
        return down @ field @ across.T
    border = cv2.BORDER_REFLECT if reflect else cv2.BORDER_REPLICATE
    return cv2.sepFilter2D(field, cv2.CV_32F, _taps(across_px, columns), _taps(down_px, rows), borderType=border)


@lru_cache(maxsize=64)
def _taps(sigma_px: float, radius: int) -> Float[np.ndarray, " taps"]:
    bell = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_px) ** 2)
    return (bell / bell.sum()).astype(np.float32)


@lru_cache(maxsize=8)
def _band(size: int, sigma_px: float, radius: int, reflect: bool) -> Float[np.ndarray, "size size"]:
    """Return the matrix that filters a row of `size` values."""
    reached = np.arange(size)[:, None] + np.arange(-radius, radius + 1)[None]
    if reflect:
        folded = reached % (2 * size)
        reached = np.minimum(folded, 2 * size - 1 - folded)
    else:
        reached = reached.clip(0, size - 1)
    matrix = np.zeros((size, size), dtype=np.float32)
    np.add.at(matrix, (np.arange(size)[:, None], reached), _taps(sigma_px, radius)[None])
    return matrix
