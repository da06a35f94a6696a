"""Motion blur: the camera moves while the shutter is open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import UInt8

from seatrial.core.noise import Corruption
from seatrial.noise.line_blur import line_blur
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
        radius_px, sigma_px = at_severity(_RADIUS_AND_SIGMA_PX, self.severity)
        blurred = line_blur(picture, radius_px, sigma_px, rng.uniform(-45.0, 45.0), _FLAT)
        return np.clip(blurred, 0, 255, out=blurred).astype(np.uint8)
