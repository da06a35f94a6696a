"""Impulse noise: dead and stuck pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import UInt8

from seatrial.core.noise import Corruption
from seatrial.noise.severity import at_severity, require_picture

_SHARE = (0.03, 0.06, 0.09, 0.17, 0.27)
"""Share of values that are replaced (hendrycks/robustness, make_imagenet_c.py)."""


@final
@dataclass(frozen=True, kw_only=True)
class ImpulseNoise(Corruption):
    """A share of the values becomes 0 or 255 at even odds (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    Raises BadInput for a severity other than 1 to 5.
    Departures: one 32-bit draw decides both whether and how a value changes.
    """

    severity: int

    def __post_init__(self) -> None:
        at_severity(_SHARE, self.severity)

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the noisy picture; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        share = at_severity(_SHARE, self.severity)
        draw = rng.random(picture.shape, dtype=np.float32)
        noisy = picture.copy()
        np.putmask(noisy, draw < np.float32(share), 0)
        np.putmask(noisy, draw < np.float32(share / 2), 255)
        return noisy
