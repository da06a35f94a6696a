"""From RGB to YUV and back, as a deployed system does whose pictures cross a video memory."""

from __future__ import annotations

from typing import get_args

import numpy as np
from jaxtyping import Int32, UInt8

from seatrial.core.pipeline import Color
from seatrial.data.chroma import box_down, nearest_up
from seatrial.errors import unknown_name

COLORS: tuple[Color, ...] = get_args(Color)

_MILLION = 1_000_000
# Millionths, so that whole numbers carry the six decimals of the formulas exactly.
_TO_YUV = ((256_788, 504_129, 97_906), (-148_223, -290_993, 439_216), (439_216, -367_788, -71_427))
_FROM_YUV = ((1_164_383, 0, 1_596_027), (1_164_383, -391_762, -812_968), (1_164_383, 2_017_232, 0))
_FROM_YUV_INTEGER = ((298, 0, 409), (298, -100, -208), (298, 516, 0))
_START = (16, 128, 128)


def through_yuv(pixels: UInt8[np.ndarray, "height width 3"], color: Color) -> UInt8[np.ndarray, "height width 3"]:
    """Return RGB pixels after a round trip through 8-bit YUV; `rgb` returns them as they are.

    BT.601 in limited range (Wang et al. 2023, SysNoise, arXiv 2307.00280, appendix A). `exact` and `integer` are the
    paper's two ways back to RGB: six decimals, or 256ths with a shift. `yuv444` keeps U and V for each pixel; `nv12`
    keeps one for 2x2 pixels, in their middle: the mean of four rounded values, rounded half up, an odd last row or
    column repeated; on the way back each is repeated 2x2.
    Raises BadInput for an unknown color.
    Departures: the paper's pictures went through an Ascend card whose filter is not stated; halves are rounded up.
    """
    if color not in COLORS:
        raise unknown_name("color", color, COLORS)
    if color == "rgb":
        return pixels
    planes = list(to_yuv(pixels))
    if color.startswith("nv12"):
        size_hw = (pixels.shape[0], pixels.shape[1])
        planes[1:] = (nearest_up(box_down(plane), size_hw) for plane in planes[1:])
    luma, blue, red = planes
    return from_yuv(luma, blue, red, exact=color.endswith("exact"))


def to_yuv(
    pixels: UInt8[np.ndarray, "height width 3"],
) -> tuple[UInt8[np.ndarray, "height width"], UInt8[np.ndarray, "height width"], UInt8[np.ndarray, "height width"]]:
    """Return Y (16 to 235), U and V (16 to 240) of RGB pixels: BT.601, limited range, rounded half up."""
    planes = [np.ascontiguousarray(pixels[:, :, channel]) for channel in range(3)]
    rounded = ((_summed(planes, row, _MILLION // 2) // _MILLION) for row in _TO_YUV)
    luma, blue, red = ((plane + start).astype(np.uint8) for plane, start in zip(rounded, _START))
    return luma, blue, red


def from_yuv(
    luma: UInt8[np.ndarray, "height width"],
    blue: UInt8[np.ndarray, "height width"],
    red: UInt8[np.ndarray, "height width"],
    *,
    exact: bool,
) -> UInt8[np.ndarray, "height width 3"]:
    """Return RGB pixels of Y, U (`blue`) and V (`red`), clipped; `exact` with six decimals, else in 256ths."""
    planes = [luma, blue, red]
    pixels = np.empty((*luma.shape, 3), dtype=np.uint8)
    for channel in range(3):
        if exact:
            row = _FROM_YUV[channel]
            value = _summed(planes, row, _MILLION // 2 - _dot(row, _START)) // _MILLION
        else:
            row = _FROM_YUV_INTEGER[channel]
            value = _summed(planes, row, 128 - _dot(row, _START)) >> 8
        np.clip(value, 0, 255, out=pixels[:, :, channel], casting="unsafe")
    return pixels


def _dot(row: tuple[int, int, int], values: tuple[int, int, int]) -> int:
    return sum(factor * value for factor, value in zip(row, values))


def _summed(
    planes: list[UInt8[np.ndarray, "height width"]], row: tuple[int, int, int], start: int
) -> Int32[np.ndarray, "height width"]:
    """Return start + sum of factor * plane; the largest sum, 1.2e9, fits 32 bits."""
    total = np.full(planes[0].shape, start, dtype=np.int32)
    term = np.empty_like(total)
    for plane, factor in zip(planes, row):
        if factor:
            total += np.multiply(plane, factor, out=term, dtype=np.int32)
    return total
