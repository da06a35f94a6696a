"""Fog: a veil of uneven thickness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import UInt8

from seatrial.core.noise import Corruption
from seatrial.noise.plasma import plasma
from seatrial.noise.severity import at_severity, require_picture

_AMOUNT_AND_DECAY = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))
"""Thickness, and how fast the plasma smooths out (hendrycks/robustness, make_imagenet_c.py)."""


@final
@dataclass(frozen=True, kw_only=True)
class Fog(Corruption):
    """Plasma is added, and the whole darkened to its former maximum (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    Raises BadInput for a severity other than 1 to 5.
    Departures: the plasma is as large as the next power of 2 above the picture (256 px in the original); float32.
    """

    severity: int

    def __post_init__(self) -> None:
        at_severity(_AMOUNT_AND_DECAY, self.severity)

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the foggy picture; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        amount, decay = at_severity(_AMOUNT_AND_DECAY, self.severity)
        height, width = picture.shape[:2]
        side = 1 << (max(height, width) - 1).bit_length()
        veil = plasma(side, decay, rng=rng)[:height, :width, None]
        most = float(picture.max())
        values = picture + veil * np.float32(255 * amount)
        values *= np.float32(most / (most + 255 * amount))
        return np.clip(values, 0, 255, out=values).astype(np.uint8)
