"""Gaussian blur: the picture is out of focus, softly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import UInt8

from seatrial.core.noise import Corruption
from seatrial.noise.severity import at_severity, require_picture
from seatrial.noise.smoothing import smoothed

_SIGMA_PX = (1, 2, 3, 4, 6)
"""Standard deviation (hendrycks/robustness, make_imagenet_c.py)."""
_FLAT = 1e-3
"""Added before fractions are cut off, so that rounding cannot darken an even area by a level."""


@final
@dataclass(frozen=True, kw_only=True)
class GaussianBlur(Corruption):
    """Gaussian blur with repeated borders (Hendrycks and Dietterich 2019, arXiv 1903.12261, validation set).

    Raises BadInput for a severity other than 1 to 5.
    Departures: float32 instead of float64; a thousandth of a level is added before fractions are cut off.
    """

    severity: int

    def __post_init__(self) -> None:
        at_severity(_SIGMA_PX, self.severity)

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the blurred picture, drawing nothing from `rng`; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        blurred = smoothed(picture.astype(np.float32), at_severity(_SIGMA_PX, self.severity))
        blurred += np.float32(_FLAT)
        return np.clip(blurred, 0, 255, out=blurred).astype(np.uint8)
