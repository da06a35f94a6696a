"""Elastic transform: the picture is stretched like rubber."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import cv2
import numpy as np
from jaxtyping import UInt8

from seatrial.core.noise import Corruption
from seatrial.noise.severity import at_severity, require_picture
from seatrial.noise.smoothing import smoothed

_ALPHA_SIGMA_JITTER = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
"""Height and smoothness of the displacement and jitter of the affine map, in units of 244 px for a picture of 224 px
(hendrycks/robustness, make_imagenet_c.py)."""
_UNIT = 244 / 224


@final
@dataclass(frozen=True, kw_only=True)
class ElasticTransform(Corruption):
    """A random affine map, then a smooth random displacement (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    Raises BadInput for a severity other than 1 to 5. Severities are not monotonic: the third is milder than the second.
    Departures: lengths scale with the shorter side; OpenCV's remap, which rounds positions to 1/32 px. This is the
    algorithm of ImageNet-C; imagecorruptions has another one of the same name, so the two cannot agree.
    """

    severity: int

    def __post_init__(self) -> None:
        at_severity(_ALPHA_SIGMA_JITTER, self.severity)

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the stretched picture; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        height, width = picture.shape[:2]
        unit = min(height, width) * _UNIT
        alpha, sigma, jitter = (unit * part for part in at_severity(_ALPHA_SIGMA_JITTER, self.severity))
        # Rows first, as the original mixes them; for square pictures it makes no difference.
        middle, reach = np.float32((height, width)) // 2, min(height, width) // 3
        corners = middle + np.float32(((reach, reach), (reach, -reach), (-reach, -reach)))
        moved = corners + rng.uniform(-jitter, jitter, size=(3, 2)).astype(np.float32)
        affine = cv2.getAffineTransform(corners, moved)
        values = picture.astype(np.float32)
        values = cv2.warpAffine(values, affine, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        field = rng.random((2, height, width), dtype=np.float32) * 2 - 1
        shifts = [smoothed(part, sigma, truncate=3.0, reflect=True) * np.float32(alpha) for part in field]
        shifts[0] += np.arange(width, dtype=np.float32)[None]
        shifts[1] += np.arange(height, dtype=np.float32)[:, None]
        result = cv2.remap(values, shifts[0], shifts[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        return np.clip(result, 0, 255, out=result).astype(np.uint8)
