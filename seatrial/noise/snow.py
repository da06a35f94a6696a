"""Snow: flakes fall through the scene, which turns pale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import cv2
import numpy as np
from jaxtyping import UInt8

from seatrial.core.noise import Corruption
from seatrial.noise.clipped_zoom import clipped_zoom
from seatrial.noise.line_blur import line_blur
from seatrial.noise.severity import at_severity, require_picture

_TABLE = (
    (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
"""Mean and deviation of a random field, its zoom, threshold, radius and deviation of the fall in px, and how much of
the scene is left (hendrycks/robustness, make_imagenet_c.py)."""


@final
@dataclass(frozen=True, kw_only=True)
class Snow(Corruption):
    """Bright specks, blurred along their fall, over a whitened scene (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    The angle of the fall is drawn from U(-135, -45) degrees. Severities are not monotonic: the third is milder than the
    second. Raises BadInput for a severity other than 1 to 5.
    Departures: float32; the blur is imagecorruptions' (see MotionBlur).
    """

    severity: int

    def __post_init__(self) -> None:
        at_severity(_TABLE, self.severity)

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the snowed-in picture; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        mean, deviation, zoom, threshold, radius_px, sigma_px, left = at_severity(_TABLE, self.severity)
        field = rng.standard_normal(picture.shape[:2], dtype=np.float32)
        field *= np.float32(deviation)
        field += np.float32(mean)
        flakes = clipped_zoom(field, zoom)
        flakes = (np.where(flakes < threshold, 0, flakes).clip(0, 1) * 255).astype(np.uint8)
        flakes = np.rint(line_blur(flakes, radius_px, sigma_px, rng.uniform(-135.0, -45.0)).clip(0, 255))
        scene = picture.astype(np.float32)
        pale = cv2.cvtColor(scene, cv2.COLOR_RGB2GRAY) * np.float32(1.5) + np.float32(0.5 * 255)
        white = cv2.max(scene, cv2.merge((pale, pale, pale)))
        values = cv2.addWeighted(scene, left, white, 1 - left, 0)
        values += (flakes + flakes[::-1, ::-1])[..., None]
        return np.clip(values, 0, 255, out=values).astype(np.uint8)
