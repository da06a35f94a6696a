"""JPEG compression: the picture was saved too small."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import final

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from seatrial.core.noise import Corruption
from seatrial.noise.severity import at_severity, require_picture

_QUALITY = (25, 18, 15, 10, 7)
"""Pillow's `quality` (hendrycks/robustness, make_imagenet_c.py)."""


@final
@dataclass(frozen=True, kw_only=True)
class JpegCompression(Corruption):
    """Encode as JPEG at low quality and decode again, both with Pillow (Hendrycks and Dietterich 2019, 1903.12261).

    Raises BadInput for a severity other than 1 to 5. Departures: none.
    """

    severity: int

    def __post_init__(self) -> None:
        at_severity(_QUALITY, self.severity)

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the decoded picture, drawing nothing from `rng`; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        stream = BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=at_severity(_QUALITY, self.severity))
        return np.array(Image.open(stream))
