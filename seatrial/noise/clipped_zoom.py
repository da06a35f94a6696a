"""The middle of a picture, enlarged to the picture's size."""

from __future__ import annotations

import math

import cv2
import numpy as np
from jaxtyping import Float


def clipped_zoom(
    field: Float[np.ndarray, "height width *channels"], factor: float
) -> Float[np.ndarray, "height width *channels"]:
    """Return the middle of float32 `field`, one `factor`-th of its sides, enlarged linearly to the size of `field`.

    First and last pixels of the middle stay first and last, as in `scipy.ndimage.zoom` with order 1; what is too much
    is cut off evenly. Source: hendrycks/robustness, make_imagenet_c.py.
    Departures: OpenCV before 5 rounds positions to 1/32 px.
    """
    height, width = field.shape[:2]
    (down, top), (across, left) = _line(height, factor), _line(width, factor)
    affine = np.array([[across, 0.0, left], [0.0, down, top]])
    return cv2.warpAffine(
        field,
        affine,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,  # for positions that rounding puts beyond the last pixel
    )


def _line(side: int, factor: float) -> tuple[float, float]:
    """Return step and start, in pixels of the source, of the pixels of one side."""
    middle = math.ceil(side / factor)
    wide = round(middle * factor)
    step = (middle - 1) / max(1, wide - 1)
    return step, (side - middle) // 2 + step * ((wide - side) // 2)
