"""Gaussian noise: what a sensor adds in low light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import UInt8

from seatrial.core.noise import Corruption
from seatrial.noise.severity import at_severity, require_picture

_DEVIATION = (0.08, 0.12, 0.18, 0.26, 0.38)
"""Standard deviation in the scale [0, 1] (hendrycks/robustness, make_imagenet_c.py)."""


@final
@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Corruption):
    """Independent normal noise on every value (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    Raises BadInput for a severity other than 1 to 5.
    Departures: computed in float32 from one draw of standard normals; as in the original, fractions are cut off.
    """

    severity: int

    def __post_init__(self) -> None:
        at_severity(_DEVIATION, self.severity)

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the noisy picture; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        values = rng.standard_normal(picture.shape, dtype=np.float32)
        values *= np.float32(255 * at_severity(_DEVIATION, self.severity))
        values += picture
        return np.clip(values, 0, 255, out=values).astype(np.uint8)
