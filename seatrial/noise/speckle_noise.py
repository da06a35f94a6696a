"""Speckle noise: noise that grows with the light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import UInt8

from seatrial.core.noise import Corruption
from seatrial.noise.severity import at_severity, require_picture

_DEVIATION = (0.15, 0.2, 0.35, 0.45, 0.6)
"""Standard deviation relative to the value (hendrycks/robustness, make_imagenet_c.py)."""


@final
@dataclass(frozen=True, kw_only=True)
class SpeckleNoise(Corruption):
    """Normal noise in proportion to every value (Hendrycks and Dietterich 2019, arXiv 1903.12261, validation set).

    Raises BadInput for a severity other than 1 to 5.
    Departures: computed in float32; as in the original, fractions are cut off.
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
        values *= np.float32(at_severity(_DEVIATION, self.severity))
        values += 1
        values *= picture
        return np.clip(values, 0, 255, out=values).astype(np.uint8)
