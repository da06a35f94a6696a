"""Glass blur: the scene behind frosted glass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from jaxtyping import Int32, UInt8

from seatrial.core.noise import Corruption
from seatrial.errors import unknown_name
from seatrial.noise.severity import at_severity, require_picture
from seatrial.noise.smoothing import smoothed

_SIGMA_REACH_PASSES = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
"""Blur before and after in px, reach of an exchange in px, and passes (hendrycks/robustness, make_imagenet_c.py)."""


@final
@dataclass(frozen=True, kw_only=True)
class GlassBlur(Corruption):
    """Blur, exchange pixels with near ones, and blur again (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    A pass goes from the lower right to the upper left; each pixel meets one that is up to `reach` - 1 px further down
    or right or `reach` px up or left. With `mode` "reference" it takes that pixel's value, as the published generator
    does: its exchange of two array views copies one over the other, so ImageNet-C holds copies. "clean" exchanges.
    Raises BadInput for a severity other than 1 to 5 or another mode.
    Departures: float32; the pass is resolved as a whole. In "reference" every pixel points to where its value comes
    from, and pointers are followed until they end at a pixel that was not yet passed; the result is that of the scan.
    """

    severity: int
    mode: Literal["reference", "clean"] = "reference"

    def __post_init__(self) -> None:
        at_severity(_SIGMA_REACH_PASSES, self.severity)
        if self.mode not in ("reference", "clean"):
            raise unknown_name("mode", self.mode, ("reference", "clean"))

    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the blurred picture; raises BadInput unless it is uint8 RGB."""
        require_picture(picture)
        sigma_px, reach, passes = at_severity(_SIGMA_REACH_PASSES, self.severity)
        height, width = picture.shape[:2]
        soft = smoothed(picture.astype(np.float32), sigma_px).clip(0, 255).astype(np.uint8).reshape(-1, 3)
        origin = np.arange(height * width, dtype=np.int32)
        for _ in range(passes):
            scanned, met = _meetings(height, width, reach, rng)
            origin = (_copied if self.mode == "reference" else _exchanged)(origin, scanned, met)
        values = smoothed(soft.take(origin, axis=0).reshape(picture.shape).astype(np.float32), sigma_px)
        return np.clip(values, 0, 255, out=values).astype(np.uint8)


def _meetings(
    height: int, width: int, reach: int, rng: np.random.Generator
) -> tuple[Int32[np.ndarray, " pixels"], Int32[np.ndarray, " pixels"]]:
    """Return, in order of the scan, flat positions of the pixels that are passed and of those that they meet."""
    rows = np.arange(height - reach, reach, -1, dtype=np.int32)
    columns = np.arange(width - reach, reach, -1, dtype=np.int32)
    scanned = (rows[:, None] * width + columns[None]).ravel()
    dy, dx = rng.integers(-reach, reach, size=(2, len(scanned)), dtype=np.int8).astype(np.int32)
    return scanned, scanned + dy * width + dx


def _copied(
    origin: Int32[np.ndarray, " pixels"], scanned: Int32[np.ndarray, " scan"], met: Int32[np.ndarray, " scan"]
) -> Int32[np.ndarray, " pixels"]:
    """Return `origin` after each scanned pixel took over what the met one held at that time."""
    count = len(origin)
    # Nodes 0 to count - 1 are pixels before the pass, the others pixels after it.
    points = np.arange(2 * count, dtype=np.int32)
    points[count:] -= count  # a pixel that is not scanned stays
    after = np.zeros(count, dtype=bool)
    after[scanned] = True
    # What lies behind in the scan (further down or right) has its new value already.
    points[count + scanned] = np.where((met > scanned) & after[met], met + count, met)
    found = points[count:]
    while True:
        further = points.take(found)
        if np.array_equal(further, found):
            return origin.take(found)
        points[count:] = further
        found = points[count:]


def _exchanged(
    origin: Int32[np.ndarray, " pixels"], scanned: Int32[np.ndarray, " scan"], met: Int32[np.ndarray, " scan"]
) -> Int32[np.ndarray, " pixels"]:
    """Return `origin` after each scanned pixel changed places with the met one, one after the other."""
    held = origin.tolist()  # a plain list is what Python exchanges fastest
    for one, other in zip(scanned.tolist(), met.tolist()):
        held[one], held[other] = held[other], held[one]
    return np.array(held, dtype=np.int32)
