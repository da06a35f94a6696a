"""Planes of chroma made smaller and larger, with the place of each sample stated."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8


def box_down(plane: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "half_height half_width"]:
    """Return the means of 2x2 samples, rounded half up; an odd last row or column is repeated.

    Each sample stands in the middle of its four.
    """
    height, width = plane.shape
    if height % 2 or width % 2:
        plane = np.pad(plane, ((0, height % 2), (0, width % 2)), mode="edge")
    wide = plane.astype(np.uint16)
    pairs = wide[0::2] + wide[1::2]
    return ((pairs[:, 0::2] + pairs[:, 1::2] + np.uint16(2)) >> 2).astype(np.uint8)


def nearest_up(
    plane: UInt8[np.ndarray, "half_height half_width"], size_hw: tuple[int, int]
) -> UInt8[np.ndarray, "height width"]:
    """Return each sample repeated 2x2, cut to `size_hw`."""
    height, width = size_hw
    return np.repeat(np.repeat(plane, 2, axis=1)[:, :width], 2, axis=0)[:height]


def linear_up(
    plane: UInt8[np.ndarray, "small_height small_width"], size_hw: tuple[int, int], factors: tuple[int, int]
) -> Float32[np.ndarray, "height width"]:
    """Return the plane at `size_hw`, linear between samples and flat beyond the outer ones, unrounded.

    `factors` are 1, 2 or 4 for (rows, columns). Samples stand as in MPEG-2 and H.264 by default (chroma sample type
    0): on the first of their columns, midway between their rows.
    """
    values = plane.astype(np.float32)
    for axis, (size, factor) in enumerate(zip(size_hw, factors)):
        if factor == 1:
            continue
        first = (factor - 1) / 2 if axis == 0 else 0.0
        position = np.clip((np.arange(size) - first) / factor, 0, values.shape[axis] - 1)
        below = position.astype(np.intp)
        above = np.minimum(below + 1, values.shape[axis] - 1)
        share = (position - below).astype(np.float32)
        low = values.take(below, axis)
        values = low + (values.take(above, axis) - low) * (share[:, None] if axis == 0 else share)
    return values
