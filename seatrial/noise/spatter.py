"""Spatter: water or mud on the lens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from seatrial.core.noise import Corruption
from seatrial.noise.severity import at_severity, require_picture
from seatrial.noise.smoothing import smoothed

_TABLE = (
    (0.65, 0.3, 4, 0.69, 0.6, "water"),
    (0.65, 0.3, 3, 0.68, 0.6, "water"),
    (0.65, 0.3, 2, 0.68, 0.5, "water"),
    (0.65, 0.3, 1, 0.65, 1.5, "mud"),
    (0.67, 0.4, 1, 0.65, 1.5, "mud"),
)
"""Mean and deviation of a random field, its smoothing in px, threshold, strength or smoothing of the mask in px, and
kind (hendrycks/robustness, make_imagenet_c.py)."""
_WATER, _MUD = np.array((175, 238, 238), np.float32), np.array((63, 42, 20), np.float32)
_EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


@final
@dataclass(frozen=True, kw_only=True)
class Spatter(Corruption):
    """Drops of water, from severity 4 on of mud (Hendrycks and Dietterich 2019, arXiv 1903.12261, validation set).

    Raises BadInput for a severity other than 1 to 5.
    Departures: float32; where a small picture gets no drop it stays as it is.
    """

    severity: int

    def __post_init__(self) -> None:
        at_severity(_TABLE, self.severity)

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the picture behind the drops; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        mean, deviation, sigma_px, threshold, strength, kind = at_severity(_TABLE, self.severity)
        field = rng.standard_normal(picture.shape[:2], dtype=np.float32)
        field *= np.float32(deviation)
        field += np.float32(mean)
        field = smoothed(field, sigma_px)
        field[field < threshold] = 0
        values = picture.astype(np.float32)
        if kind == "water":
            values += _drops(field, strength)[..., None] * _WATER
        else:
            mask = smoothed((field > threshold).astype(np.float32), strength)
            mask[mask < 0.8] = 0
            values += mask[..., None] * (_MUD - values)
        return np.clip(values, 0, 255, out=values).astype(np.uint8)


def _drops(field: Float[np.ndarray, "height width"], strength: float) -> Float[np.ndarray, "height width"]:
    """Return how much water shines at each pixel: thick near the rims of the drops, with an embossed relief."""
    liquid = (field * 255).clip(0, 255).astype(np.uint8)
    depth = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    depth = cv2.blur(np.minimum(depth, 20), (3, 3)).astype(np.uint8)
    relief = cv2.filter2D(cv2.equalizeHist(depth), cv2.CV_8U, _EMBOSS)
    shine = cv2.blur(relief, (3, 3)).astype(np.float32) * liquid
    most = shine.max()
    return shine * np.float32(strength / most) if most > 0 else shine
