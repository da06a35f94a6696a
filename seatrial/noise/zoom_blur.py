"""Zoom blur: the camera moves towards the scene while the shutter is open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import cv2
import numpy as np
from jaxtyping import UInt8

from seatrial.core.noise import Corruption
from seatrial.noise.clipped_zoom import clipped_zoom
from seatrial.noise.severity import at_severity, require_picture

_FACTORS = tuple(
    tuple(round(1 + step * i, 2) for i in range(count))
    for count, step in ((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03))
)
"""The lengths of the published lists are those that a half-open range in floating point happened to have."""
_FLAT = 1e-3
"""Added before fractions are cut off, so that rounding cannot darken an even area by a level."""


@final
@dataclass(frozen=True, kw_only=True)
class ZoomBlur(Corruption):
    """The mean of a picture and its enlargements (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    Raises BadInput for a severity other than 1 to 5.
    Departures: float32 instead of float64; a thousandth of a level is added before fractions are cut off.
    """

    severity: int

    def __post_init__(self) -> None:
        at_severity(_FACTORS, self.severity)

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the blurred picture, drawing nothing from `rng`; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        # A fourth channel that nobody reads: OpenCV warps four faster than three.
        plain = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2RGBA).astype(np.float32)
        factors = at_severity(_FACTORS, self.severity)
        total = 2 * plain  # the picture itself, and its enlargement by 1
        for factor in factors[1:]:
            total += clipped_zoom(plain, factor)
        total /= np.float32(len(factors) + 1)
        total += np.float32(_FLAT)
        return cv2.cvtColor(np.clip(total, 0, 255, out=total).astype(np.uint8), cv2.COLOR_RGBA2RGB)
