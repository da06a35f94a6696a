"""Brightness: more light."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import final

import cv2
import numpy as np
from jaxtyping import UInt8

from seatrial.core.noise import Corruption
from seatrial.noise.severity import at_severity, require_picture

_GAIN = (0.1, 0.2, 0.3, 0.4, 0.5)
"""What is added to V of HSV, in the scale [0, 1] (hendrycks/robustness, make_imagenet_c.py)."""


@final
@dataclass(frozen=True, kw_only=True)
class Brightness(Corruption):
    """V of HSV grows by a constant, hue and saturation stay (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    Raises BadInput for a severity other than 1 to 5.
    Departures: no way to HSV and back. With hue and saturation kept every channel scales as V does, so the result is
    a table of 256 x 256 entries, by the largest channel and the channel's own value.
    """

    severity: int

    def __post_init__(self) -> None:
        at_severity(_GAIN, self.severity)

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the brighter picture, drawing nothing from `rng`; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        red, green, blue = cv2.split(picture)
        row = cv2.max(cv2.max(red, green), blue).astype(np.uint16) << 8
        return _table(at_severity(_GAIN, self.severity)).take(cv2.merge((row, row, row)) | picture)


@lru_cache(maxsize=len(_GAIN))
def _table(gain: float) -> UInt8[np.ndarray, " 65536"]:
    """Return the new value at `256 * V + value`, in the order of operations of rgb2hsv and hsv2rgb in float64."""
    scale = np.arange(256) / 255.0
    value, channel = scale[:, None], scale[None, :]
    saturation = np.divide(value - channel, value, out=np.zeros((256, 256)), where=value > 0)
    bright = np.clip(value + gain, 0, 1) * (1 - saturation)
    table = (np.clip(bright, 0, 1) * 255).astype(np.uint8).ravel()
    table.setflags(write=False)
    return table
