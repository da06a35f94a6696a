"""Frost: ice on the window."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, final

import cv2
import numpy as np
from jaxtyping import UInt8

from seatrial.core.noise import Corruption
from seatrial.errors import BadInput, unknown_name
from seatrial.noise.frost_pictures import available_source, frost_picture
from seatrial.noise.severity import at_severity, require_picture

_SCENE_AND_ICE = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
"""Weights of the scene and of the ice (hendrycks/robustness, make_imagenet_c.py)."""
_ENLARGED = 1.1


@final
@dataclass(frozen=True, kw_only=True)
class Frost(Corruption):
    """A random part of a picture of ice is added to the scene (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    The pictures are those that the package imagecorruptions ships, where it is installed, else procedural ones;
    `source` says which ("imagecorruptions 1.1.2", "procedural"). With `mode` "reference" the first five of the six are
    used, as in the published generator, with "clean" all. Raises BadInput for a severity other than 1 to 5, another
    mode, or a source that is not there.
    Departures: pictures of ice are enlarged until they are 1.1 times the scene, as imagecorruptions does for scenes of
    any size; the published generator, for 224 pixels, crops them as they are. Procedural frost is ours, and results
    with it are not comparable with published ones.
    """

    severity: int
    mode: Literal["reference", "clean"] = "reference"
    source: str = field(default_factory=available_source)

    def __post_init__(self) -> None:
        at_severity(_SCENE_AND_ICE, self.severity)
        if self.mode not in ("reference", "clean"):
            raise unknown_name("mode", self.mode, ("reference", "clean"))
        if self.source not in ("procedural", available_source()):
            raise BadInput(
                f"frost pictures '{self.source}'", f"'procedural' or '{available_source()}'", "leave the source out"
            )

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the frosted picture; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        scene, ice = at_severity(_SCENE_AND_ICE, self.severity)
        index = int(rng.integers(5 if self.mode == "reference" else 6))
        height, width = picture.shape[:2]
        frost = frost_picture(self.source, index, height, width, _ENLARGED)
        top = int(rng.integers(frost.shape[0] - height))
        left = int(rng.integers(frost.shape[1] - width))
        part = np.ascontiguousarray(frost[top : top + height, left : left + width])
        values = cv2.addWeighted(picture, scene, part, ice, 0, dtype=cv2.CV_32F)
        return np.clip(values, 0, 255, out=values).astype(np.uint8)
