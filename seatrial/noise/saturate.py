"""Saturate: colours too pale or too strong."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import final

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from seatrial.core.noise import Corruption
from seatrial.noise.severity import at_severity, require_picture

_FACTOR_AND_OFFSET = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))
"""S of HSV becomes S * factor + offset, in the scale [0, 1] (hendrycks/robustness, make_imagenet_c.py)."""


@final
@dataclass(frozen=True, kw_only=True)
class Saturate(Corruption):
    """S of HSV is scaled and shifted, hue and value stay (Hendrycks and Dietterich 2019, arXiv 1903.12261, validation).

    Raises BadInput for a severity other than 1 to 5.
    Departures: no way to HSV and back: with hue and value kept, every channel's distance from the largest one scales
    as S does. As in the original, a grey pixel has the hue of red.
    """

    severity: int

    def __post_init__(self) -> None:
        at_severity(_FACTOR_AND_OFFSET, self.severity)

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the recoloured picture, drawing nothing from `rng`; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        red, green, blue = cv2.split(picture)
        most = cv2.max(cv2.max(red, green), blue)
        least = cv2.min(cv2.min(red, green), blue)
        growth, offset = _tables(*at_severity(_FACTOR_AND_OFFSET, self.severity))
        pair = (most.astype(np.uint16) << 8) | least.astype(np.uint16)
        value = most.astype(np.float32)[..., None]
        distance = (value - picture) * growth.take(pair)[..., None]
        grey = most == least
        distance[..., 1:][grey] = (offset * value)[grey]
        result = value - distance
        result += np.float32(1e-3)
        return np.clip(result, 0, 255, out=result).astype(np.uint8)


@lru_cache(maxsize=8)
def _tables(factor: float, offset: float) -> tuple[Float[np.ndarray, " 65536"], np.float32]:
    """Return new S / old S at `256 * most + least` (0 where S is 0), and the new S of grey pixels."""
    most, least = np.arange(256.0)[:, None], np.arange(256.0)[None]
    saturation = np.divide(most - least, most, out=np.zeros((256, 256)), where=most > 0)
    wanted = np.clip(saturation * factor + offset, 0, 1)
    growth = np.divide(wanted, saturation, out=np.zeros((256, 256)), where=saturation > 0)
    return growth.astype(np.float32).ravel(), np.float32(min(1.0, offset))
