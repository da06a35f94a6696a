"""As stored: the corrupted picture went through a file, as the pictures of ImageNet-C did."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import final

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from seatrial.core.noise import Corruption

_QUALITY = 85
"""Pillow's `quality` when the published set was written (hendrycks/robustness, make_imagenet_c.py)."""


@final
@dataclass(frozen=True, kw_only=True)
class AsStored(Corruption):
    """Another corruption, encoded as JPEG of quality 85 and decoded again (Hendrycks and Dietterich 2019, 1903.12261).

    The published ImageNet-C was stored so, and accuracies on its files differ from those on pictures that are corrupted
    in memory; with this the latter can be compared with them. Departures: none.
    """

    corruption: Corruption

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the decoded picture; `rng` goes to the corruption. Raises BadInput unless it is uint8 RGB."""
        stream = BytesIO()
        Image.fromarray(self.corruption.corrupt(picture, rng=rng)).save(stream, "JPEG", quality=_QUALITY)
        return np.array(Image.open(stream))
