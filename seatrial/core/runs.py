"""Masks as run lengths: short, exact, and a plain list in a record."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int32


def runs_of(mask: Bool[np.ndarray, "height width"]) -> Int32[np.ndarray, " runs"]:
    """Return the lengths of the runs of a mask in pixels, column by column, beginning with one of False (maybe 0).

    Source: COCO's uncompressed RLE (pycocotools, `maskApi.c`).
    """
    flat = np.concatenate([[False], np.ravel(mask, order="F"), [False]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    ends = changes if changes.size and changes[-1] == mask.size else np.append(changes, mask.size)
    return np.diff(ends, prepend=0).astype(np.int32)


def mask_of(runs: Int32[np.ndarray, " runs"], size_px: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Return the mask of `size_px` (height, width) with these runs; raises ValueError where they do not fill it."""
    if int(runs.sum()) != size_px[0] * size_px[1]:
        raise ValueError(f"runs over {int(runs.sum())} pixels for a picture of {size_px[1]}x{size_px[0]}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(size_px[::-1]).T


def area_px(runs: Int32[np.ndarray, " runs"]) -> int:
    """Return how many pixels of the mask are set."""
    return int(runs[1::2].sum())


def unpacked(text: str) -> list[int] | None:
    """Return the run lengths of COCO's packed text, None where it is damaged.

    Each number has 5 bits a character, lowest first, bit 6 says that more follow; from the third on it is the
    difference to the one before the last (`rleFrString` of pycocotools, which trusts what it reads).
    """
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return None if shift else runs
