"""Contrast: dim light, or fog on the lens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import cv2
import numpy as np
from jaxtyping import UInt8

from seatrial.core.noise import Corruption
from seatrial.noise.severity import at_severity, require_picture

_FACTOR = (0.4, 0.3, 0.2, 0.1, 0.05)
"""What is left of a value's distance from the mean (hendrycks/robustness, make_imagenet_c.py)."""


@final
@dataclass(frozen=True, kw_only=True)
class Contrast(Corruption):
    """Values move towards the mean of their channel (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    Raises BadInput for a severity other than 1 to 5.
    Departures: a table of 256 entries for each channel.
    """

    severity: int

    def __post_init__(self) -> None:
        at_severity(_FACTOR, self.severity)

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the pale picture, drawing nothing from `rng`; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        means = np.array(cv2.mean(np.ascontiguousarray(picture))[:3]) / 255
        scale = np.arange(256)[:, None] / 255
        table = (scale - means) * at_severity(_FACTOR, self.severity) + means
        levels = (np.clip(table, 0, 1) * 255 + 1e-9).astype(np.uint8)
        return cv2.LUT(np.ascontiguousarray(picture), levels[:, None])
