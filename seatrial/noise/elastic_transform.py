"""Elastic transform: the picture is stretched like rubber."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final, get_args

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from seatrial.core.noise import Corruption
from seatrial.errors import unknown_name
from seatrial.noise.severity import at_severity, require_picture
from seatrial.noise.smoothing import smoothed

_ALPHA_SIGMA_JITTER = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
"""Height and smoothness of the displacement and jitter of the affine map, in units of 244 px for a picture of 224 px
(hendrycks/robustness, make_imagenet_c.py)."""
_UNIT = 244 / 224


_PEER_ALPHA = (250 * 0.05, 250 * 0.065, 250 * 0.085, 250 * 0.1, 250 * 0.12)
_PEER_REACH, _PEER_SIGMA = 0.005, 0.01
"""Height of the displacement, its range in heights, its smoothness in sides (imagecorruptions 1.1.2)."""

Variant = Literal["imagenet-c", "imagecorruptions"]


@final
@dataclass(frozen=True, kw_only=True)
class ElasticTransform(Corruption):
    """A random affine map, then a smooth random displacement (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    Severities are not monotonic: the third is milder than the second. With `variant` "imagecorruptions" it is what that
    package does under the same name: no affine map, another displacement. Results of the two cannot be compared.
    Raises BadInput for a severity other than 1 to 5 or another variant.
    Departures: lengths of "imagenet-c" scale with the shorter side; OpenCV before 5 rounds positions to 1/32 px.
    """

    severity: int
    variant: Variant = "imagenet-c"

    def __post_init__(self) -> None:
        at_severity(_ALPHA_SIGMA_JITTER, self.severity)
        if self.variant not in get_args(Variant):
            raise unknown_name("variant", self.variant, get_args(Variant))

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the stretched picture; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        height, width = picture.shape[:2]
        # A fourth channel that nobody reads: OpenCV maps four faster than three.
        values = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2RGBA).astype(np.float32)
        if self.variant == "imagenet-c":
            unit = min(height, width) * _UNIT
            alpha, sigma, jitter = (unit * part for part in at_severity(_ALPHA_SIGMA_JITTER, self.severity))
            values = _stretched(values, jitter, rng)
            smoothness = (sigma, sigma)
        else:
            alpha = at_severity(_PEER_ALPHA, self.severity) * _PEER_REACH * height
            smoothness = (_PEER_SIGMA * height, _PEER_SIGMA * width)
        field = rng.random((2, height, width), dtype=np.float32) * 2 - 1
        shifts = [smoothed(part, smoothness, truncate=3.0, reflect=True) * np.float32(alpha) for part in field]
        shifts[0] += np.arange(width, dtype=np.float32)[None]
        shifts[1] += np.arange(height, dtype=np.float32)[:, None]
        result = cv2.remap(values, shifts[0], shifts[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        return cv2.cvtColor(np.clip(result, 0, 255, out=result).astype(np.uint8), cv2.COLOR_RGBA2RGB)


def _stretched(
    values: Float[np.ndarray, "height width 4"], jitter_px: float, rng: np.random.Generator
) -> Float[np.ndarray, "height width 4"]:
    """Return `values` under the affine map that moves three points around the middle by up to `jitter_px`."""
    height, width = values.shape[:2]
    # Rows first, as the original mixes them; for square pictures it makes no difference.
    middle, reach = np.array([height // 2, width // 2]), min(height, width) // 3
    corners = (middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    moved = corners + rng.uniform(-jitter_px, jitter_px, size=(3, 2)).astype(np.float32)
    affine = cv2.getAffineTransform(corners, moved)
    return cv2.warpAffine(values, affine, (width, height), borderMode=cv2.BORDER_REFLECT_101)
