"""Shot noise: light arrives in single photons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import UInt8

from seatrial.core.noise import Corruption
from seatrial.noise.poisson import poisson_levels
from seatrial.noise.severity import at_severity, require_picture

_PHOTONS = (60, 25, 12, 5, 3)
"""Photons that a white value stands for (hendrycks/robustness, make_imagenet_c.py)."""


@final
@dataclass(frozen=True, kw_only=True)
class ShotNoise(Corruption):
    """Every value becomes a Poisson draw of its photons (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    Raises BadInput for a severity other than 1 to 5.
    Departures: drawn by inverting the distribution function, exact to the 32 bits of one uniform number a value.
    """

    severity: int

    def __post_init__(self) -> None:
        at_severity(_PHOTONS, self.severity)

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the noisy picture; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        photons = at_severity(_PHOTONS, self.severity)
        counts = poisson_levels(picture, photons, rng=rng)
        levels = np.minimum(np.arange(256) / photons, 1.0) * 255
        return levels.astype(np.uint8).take(counts)
