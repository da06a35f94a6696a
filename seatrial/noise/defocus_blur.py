"""Defocus blur: the lens is set to another distance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import final

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from seatrial.core.noise import Corruption
from seatrial.noise.severity import at_severity, require_picture

_RADIUS_AND_SIGMA_PX = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
"""Radius of the disk and deviation of the blur of its rim (hendrycks/robustness, make_imagenet_c.py)."""
_FLAT = 1e-3
"""Added before fractions are cut off, so that rounding cannot darken an even area by a level."""


@final
@dataclass(frozen=True, kw_only=True)
class DefocusBlur(Corruption):
    """Convolution with a disk whose rim is smoothed (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    Raises BadInput for a severity other than 1 to 5.
    Departures: float32 instead of float64; a thousandth of a level is added before fractions are cut off.
    """

    severity: int

    def __post_init__(self) -> None:
        at_severity(_RADIUS_AND_SIGMA_PX, self.severity)

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the blurred picture, drawing nothing from `rng`; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        disk = _disk(*at_severity(_RADIUS_AND_SIGMA_PX, self.severity))
        # A sum of rows of the disk, each a box of one weight, would not hold its smoothed rim.
        blurred = cv2.filter2D(np.ascontiguousarray(picture), cv2.CV_32F, disk)
        blurred += np.float32(_FLAT)
        return np.clip(blurred, 0, 255, out=blurred).astype(np.uint8)


@lru_cache(maxsize=8)
def _disk(radius: int, sigma_px: float) -> Float[np.ndarray, "side side"]:
    reach, rim = (8, 3) if radius <= 8 else (radius, 5)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float32)
    disk = cv2.GaussianBlur(disk / disk.sum(), (rim, rim), sigmaX=sigma_px)
    used = np.flatnonzero(disk.any(0))
    return np.ascontiguousarray(disk[used[0] : used[-1] + 1, used[0] : used[-1] + 1])
