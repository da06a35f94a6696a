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

_FLAT = 1e-3
"""Added before fractions are cut off, so that rounding cannot darken an even area by a level."""


@final
@dataclass(frozen=True, kw_only=True)
class GlassBlur(Corruption):
    """Blur, exchange pixels with near ones, and blur again (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    A pass goes from the lower right to the upper left; each pixel meets one that is up to `reach` - 1 px further down
    or right or `reach` px up or left. With `mode` "reference" it takes that pixel's value, as the published generator
    does: its exchange of two array views copies one over the other, so ImageNet-C holds copies. "clean" exchanges.
    Raises BadInput for a severity other than 1 to 5 or another mode.
    Departures: float32; a pass is resolved as a whole, with the result of the scan. In "reference" every pixel points
    to where its value comes from, in "clean" every exchange to the next one of the same pixel, and all pointers are
    followed at once to their ends. A thousandth of a level is added before fractions are cut off.
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
        soft = _blurred(picture, sigma_px).reshape(-1, 3)
        origin = np.arange(height * width, dtype=np.int32)
        for _ in range(passes):
            scanned, met = _meetings(height, width, reach, rng)
            origin = (_copied if self.mode == "reference" else _exchanged)(origin, scanned, met)
        return _blurred(soft.take(origin, axis=0).reshape(picture.shape), sigma_px)


def _blurred(picture: UInt8[np.ndarray, "height width 3"], sigma_px: float) -> UInt8[np.ndarray, "height width 3"]:
    values = smoothed(picture.astype(np.float32), sigma_px)
    values += np.float32(_FLAT)
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
    passed = np.zeros(len(origin), dtype=bool)
    passed[scanned] = True
    # What lies behind in the scan (further down or right) has its new value already.
    open_ = np.flatnonzero(met > scanned)
    open_ = open_[passed.take(met.take(open_))]
    points = ~np.arange(len(origin), dtype=np.int32)  # ~p: the value that pixel p had before the pass
    points[scanned] = ~met
    pixels, ends = scanned.take(open_), met.take(open_)
    points[pixels] = ends  # p: the value that pixel p has after it
    found = points.copy()
    while len(pixels):
        ends = points.take(ends)
        found[pixels] = ends
        further = np.flatnonzero(ends >= 0)
        pixels, ends = pixels.take(further), ends.take(further)
    return origin.take(~found)


def _exchanged(
    origin: Int32[np.ndarray, " pixels"], scanned: Int32[np.ndarray, " scan"], met: Int32[np.ndarray, " scan"]
) -> Int32[np.ndarray, " pixels"]:
    """Return `origin` after each scanned pixel changed places with the met one, one after the other."""
    if not len(scanned):
        return origin
    # Exchange i is two ends of a bridge, 2i and 2i + 1: what arrives at one goes on from the other.
    place = np.stack((scanned, met), axis=1).ravel()
    by_place = _stable_order(place, len(origin))
    held = place.take(by_place)
    last = np.flatnonzero(held[1:] != held[:-1])
    later = np.append(by_place[1:], np.int32(-1))  # the next end at the same place, -1 for none
    later[last] = -1
    onward = np.empty_like(by_place)
    onward[by_place ^ 1] = later
    ends = by_place.take(np.append(0, last + 1))
    values = origin.take(place.take(ends))
    found = origin.copy()
    while len(ends):
        next_ends = onward.take(ends)
        there = np.flatnonzero(next_ends < 0)
        found[place.take(ends.take(there) ^ 1)] = values.take(there)
        further = np.flatnonzero(next_ends >= 0)
        ends, values = next_ends.take(further), values.take(further)
    return found


def _stable_order(places: Int32[np.ndarray, " ends"], count: int) -> Int32[np.ndarray, " ends"]:
    """Return the stable order of numbers from 0 to `count` - 1; numpy sorts 16 bits at a time in linear time."""
    order = np.argsort(places.astype(np.uint16), kind="stable")  # by the lower 16 bits
    if count > 2**16:
        order = order.take(np.argsort((places >> 16).astype(np.uint16).take(order), kind="stable"))
    return order.astype(np.int32)
