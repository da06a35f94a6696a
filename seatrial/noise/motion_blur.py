"""Motion blur: the camera moves while the shutter is open."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import cv2
import numpy as np
from jaxtyping import UInt8

from seatrial.core.noise import Corruption
from seatrial.noise.severity import at_severity, require_picture

_RADIUS_AND_SIGMA_PX = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
_FLAT = 1e-3
"""Added before fractions are cut off, so that rounding cannot darken an even area by a level."""


@final
@dataclass(frozen=True, kw_only=True)
class MotionBlur(Corruption):
    """Blur along a line at an angle drawn from U(-45, 45) degrees, weights half a Gaussian over 2r + 1 pixels.

    The definition is imagecorruptions' (bethgelab, 1.1.2), which replaces ImageMagick's of Hendrycks and Dietterich
    2019 (arXiv 1903.12261): copies shifted by whole pixels with repeated borders; a shift as long as the picture ends
    the sum, so that small pictures get darker at high severity. Raises BadInput for a severity other than 1 to 5.
    Departures: float32 instead of float64, steps that fall on the same pixel are added once with their joint weight,
    and a thousandth of a level is added before fractions are cut off.
    """

    severity: int

    def __post_init__(self) -> None:
        at_severity(_RADIUS_AND_SIGMA_PX, self.severity)

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the blurred picture; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        height, width = picture.shape[:2]
        weights = self._weights(rng.uniform(-45.0, 45.0), height, width)
        down, right = (max(0, *(shift[axis] for shift in weights)) for axis in (0, 1))
        up, left = (max(0, *(-shift[axis] for shift in weights)) for axis in (0, 1))
        wide = cv2.copyMakeBorder(picture, down, up, right, left, cv2.BORDER_REPLICATE).astype(np.float32)
        blurred = np.full(picture.shape, _FLAT, dtype=np.float32)
        for (dy, dx), weight in weights.items():
            top, start = down - dy, right - dx
            cv2.scaleAdd(wide[top : top + height, start : start + width], weight, blurred, dst=blurred)
        return np.clip(blurred, 0, 255, out=blurred).astype(np.uint8)

    def _weights(self, angle_deg: float, height: int, width: int) -> dict[tuple[int, int], float]:
        """Return the weight of every shift (dy, dx) in whole pixels, down and right positive."""
        radius, sigma = at_severity(_RADIUS_AND_SIGMA_PX, self.severity)
        bell = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
        bell /= bell.sum()
        # The detour over the length of the line is the original's; it decides ties such as i * sin(-30 degrees).
        angle_rad, taps = np.deg2rad(angle_deg), len(bell)
        fall, run = taps * np.sin(angle_rad), taps * np.cos(angle_rad)
        length = math.hypot(fall, run)
        weights: dict[tuple[int, int], float] = {}
        for i, weight in enumerate(bell.tolist()):
            shift = -math.ceil(i * fall / length - 0.5), -math.ceil(i * run / length - 0.5)
            if abs(shift[0]) >= height or abs(shift[1]) >= width:
                break
            weights[shift] = weights.get(shift, 0.0) + weight
        return weights
