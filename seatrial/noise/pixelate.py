"""Pixelate: a small picture was blown up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import final

import cv2
import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from seatrial.core.noise import Corruption
from seatrial.noise.severity import at_severity, require_picture

_SCALE = (0.6, 0.5, 0.4, 0.3, 0.25)
"""Side of the small picture, of 1 (hendrycks/robustness, make_imagenet_c.py)."""


@final
@dataclass(frozen=True, kw_only=True)
class Pixelate(Corruption):
    """Shrink with Pillow's box filter and enlarge again with it (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    Raises BadInput for a severity other than 1 to 5.
    Departures: none. imagecorruptions enlarges with the nearest pixel instead, which puts some edges elsewhere.
    """

    severity: int

    def __post_init__(self) -> None:
        at_severity(_SCALE, self.severity)

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the coarse picture, drawing nothing from `rng`; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        height, width = picture.shape[:2]
        scale = at_severity(_SCALE, self.severity)
        low, narrow = max(1, int(height * scale)), max(1, int(width * scale))
        coarse = np.asarray(Image.fromarray(picture).resize((narrow, low), Image.Resampling.BOX))
        words = cv2.cvtColor(coarse, cv2.COLOR_RGB2RGBA).view(np.uint32)[..., 0]  # a pixel is one number to take
        words = words.take(_nearest(narrow, width), axis=1).take(_nearest(low, height), axis=0)
        return cv2.cvtColor(words[..., None].view(np.uint8), cv2.COLOR_RGBA2RGB)


@lru_cache(maxsize=64)
def _nearest(small: int, large: int) -> Int64[np.ndarray, " large"]:
    """Return which of `small` pixels each of `large` ones shows: enlarging, the box filter takes one pixel."""
    ramp = Image.fromarray(np.arange(small, dtype=np.float32)[None])
    return np.asarray(ramp.resize((large, 1), Image.Resampling.BOX))[0].astype(np.int64)
