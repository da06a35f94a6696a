"""Boxes: from what heads of detectors predict to corners in pixels, and the suppression of doubles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from seatrial.errors import BadInput

MOST_GROWTH = math.log(1000 / 16)
"""Predicted logarithms of sizes above this are cut (Girshick et al. 2018, Detectron)."""


def corners(
    centers: Float32[np.ndarray, "boxes 2"], sizes: Float32[np.ndarray, "boxes 2"], *, offset_px: float = 0
) -> Float32[np.ndarray, "boxes 4"]:
    """Return x1, y1, x2, y2 in the pixels of the arguments (x first).

    `offset_px` 1 counts whole pixels: the far corner is the last pixel, not the edge behind it.
    Source: SysNoise (Wang et al. 2023), appendix A, "detection proposal".
    """
    return np.concatenate([centers - sizes / 2, centers + sizes / 2 - np.float32(offset_px)], axis=1)


def decode_deltas(
    deltas: Float32[np.ndarray, "boxes 4"],
    anchors: Float32[np.ndarray, "boxes 4"],
    *,
    means: tuple[float, float, float, float] = (0, 0, 0, 0),
    stds: tuple[float, float, float, float] = (1, 1, 1, 1),
    offset_px: float = 0,
) -> Float32[np.ndarray, "boxes 4"]:
    """Return the boxes (x1, y1, x2, y2, pixels) that shifts and log sizes relative to anchors stand for.

    `offset_px` 1 is the older convention in the result alone: anchors are read as edges either way.
    Source: SysNoise (Wang et al. 2023), appendix A; Girshick 2015, section 3 of the supplement of Fast R-CNN.
    """
    shifts = deltas * np.asarray(stds, dtype=np.float32) + np.asarray(means, dtype=np.float32)
    extents = anchors[:, 2:] - anchors[:, :2]
    centers = anchors[:, :2] + extents / 2 + shifts[:, :2] * extents
    sizes = np.exp(np.minimum(shifts[:, 2:], np.float32(MOST_GROWTH))) * extents
    return corners(centers, sizes, offset_px=offset_px)


def decode_yolox(
    raw: Float32[np.ndarray, "locations channels"], input_px: tuple[int, int], strides: Sequence[int]
) -> tuple[Float32[np.ndarray, "locations 2"], Float32[np.ndarray, "locations 2"]]:
    """Return centers and sizes in pixels of the input (x first) of the first four channels of a YOLOX head.

    Locations are the cells of one grid a stride, row by row. Raises BadInput where their number is not that of
    `input_px` (height, width). Source: Ge et al. 2021, section 2.1.
    """
    cells: list[np.ndarray] = []
    steps: list[np.ndarray] = []
    for stride in strides:
        rows, columns = input_px[0] // stride, input_px[1] // stride
        y, x = np.divmod(np.arange(rows * columns), max(1, columns))
        cells.append(np.stack([x, y], axis=1))
        steps.append(np.full(rows * columns, stride))
    grid, step = np.concatenate(cells).astype(np.float32), np.concatenate(steps).astype(np.float32)[:, None]
    if len(grid) != len(raw):
        raise BadInput(
            f"{len(raw)} locations for an input of {input_px[0]}x{input_px[1]} pixels",
            f"{len(grid)} with strides {', '.join(map(str, strides))}",
            "state the detector's input size and strides",
        )
    with np.errstate(over="ignore"):  # a size without bound is no box, and is counted as such
        return (raw[:, :2] + grid) * step, np.exp(raw[:, 2:4]) * step


def overlaps(
    box: Float32[np.ndarray, " 4"] | Float64[np.ndarray, " 4"],
    others: Float32[np.ndarray, "boxes 4"] | Float64[np.ndarray, "boxes 4"],
    *,
    offset_px: float = 0,
) -> Float32[np.ndarray, " boxes"] | Float64[np.ndarray, " boxes"]:
    """Return intersection over union of a box with others, 0 where neither has an area.

    `offset_px` 1 counts whole pixels: widths and heights are larger by 1.
    """
    offset = box.dtype.type(offset_px)
    near, far = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    sides = np.maximum(far - near + offset, 0)
    shared = sides[:, 0] * sides[:, 1]
    own = np.prod(box[2:] - box[:2] + offset)
    areas = (others[:, 2] - others[:, 0] + offset) * (others[:, 3] - others[:, 1] + offset)
    union = own + areas - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def suppress(
    boxes: Float32[np.ndarray, "boxes 4"],
    scores: Float32[np.ndarray, " boxes"],
    classes: Int64[np.ndarray, " boxes"],
    *,
    iou: float,
    most: int,
    offset_px: float = 0,
) -> Int64[np.ndarray, " kept"]:
    """Return which boxes stay, best first (at most `most`): none overlaps a better one of its class by more than `iou`.

    Of equal scores the first comes first. Source: greedy non-maximum suppression as in torchvision's `batched_nms`,
    to which it is equal.
    """
    order = np.argsort(-scores, kind="stable")
    left: Bool[np.ndarray, " boxes"] = np.ones(len(order), dtype=bool)
    ranked, kinds = boxes[order], classes[order]
    kept: list[int] = []
    # Each pass takes the best that is left, so it can stop early, and costs one row of overlaps, not a whole matrix.
    at = 0
    while len(kept) < most and at < len(order):
        if not left[at]:
            at += int(np.argmax(left[at:])) if left[at:].any() else len(order)
            continue
        kept.append(at)
        after = at + 1
        rivals = overlaps(ranked[at], ranked[after:], offset_px=offset_px) > np.float64(iou)
        left[after:] &= ~(rivals & (kinds[after:] == kinds[at]))
        at = after
    return order[np.array(kept, dtype=np.int64)]
