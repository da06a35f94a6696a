"""Maps over the network's input, read at the pixels of the source."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from seatrial.core.sample import Picture

Window = tuple[int, int, int, int]
"""First row, first column, row after the last, column after the last, in pixels of the source."""


def at_source(
    maps: Float[Tensor, "channels h w"], picture: Picture, window: Window | None = None
) -> Float[Tensor, "channels rows columns"]:
    """Return `maps`, of any resolution over the whole input, at the centers of the source's pixels in `window`.

    Between centers of the map values are bilinear, beyond its outer centers they stay, on its centers they are exact.
    """
    (above, row_share), (left, column_share) = (_between(maps.shape[a + 1], picture, a, window) for a in (0, 1))
    if not above.size or not left.size:
        return maps.new_empty(len(maps), above.size, left.size)
    # Columns first and in the rows that are needed alone: the map has fewer rows than the source, as a rule.
    top = int(above.min())
    maps = maps[:, top : int(above.max()) + 2]
    maps = _lerped(maps, 2, left, torch.from_numpy(column_share).to(maps))
    return _lerped(maps, 1, above - top, torch.from_numpy(row_share).to(maps)[:, None])


def nearest_at_source(
    classes: Float[np.ndarray, "h w"], picture: Picture, window: Window | None = None
) -> Float[np.ndarray, "rows columns"]:
    """Return the entries of a map of classes whose cells hold the centers of the source's pixels in `window`."""
    at = []
    for axis in (0, 1):
        cells = _centers(picture, axis, window) * classes.shape[axis] / picture.pixels.shape[axis]
        at.append(np.clip(np.floor(cells).astype(np.int64), 0, classes.shape[axis] - 1))
    return classes[np.ix_(*at)]


def in_view(picture: Picture) -> Bool[np.ndarray, "height width"]:
    """Return which pixels of the source the network's input shows: those with their centers in it."""
    rows, columns = (
        (centers >= 0) & (centers < side)
        for centers, side in zip((_centers(picture, axis, None) for axis in (0, 1)), picture.pixels.shape[:2])
    )
    return rows[:, None] & columns[None, :]


def _centers(picture: Picture, axis: int, window: Window | None) -> Float[np.ndarray, " pixels"]:
    """Return where the centers of the source's rows (axis 0) or columns (axis 1) stand in pixels of the input."""
    assert picture.placement is not None, "a picture that lost its map to the source"
    first, after = (0, picture.source_size_px[axis]) if window is None else (window[axis], window[axis + 2])
    return (np.arange(first, after) + 0.5) * picture.placement.scale[axis] + picture.placement.offset_px[axis]


def _between(
    side: int, picture: Picture, axis: int, window: Window | None
) -> tuple[Int64[np.ndarray, " pixels"], Float[np.ndarray, " pixels"]]:
    """Return, for each row or column of the source, the cell of the map before its center and how far it is past it."""
    at = np.clip(_centers(picture, axis, window) * side / picture.pixels.shape[axis] - 0.5, 0, side - 1)
    before = np.floor(at).astype(np.int64)
    return before, at - before


def _lerped(maps: Tensor, axis: int, before: np.ndarray, share: Tensor) -> Tensor:
    after = torch.from_numpy(np.minimum(before + 1, maps.shape[axis] - 1))
    return torch.lerp(maps.index_select(axis, torch.from_numpy(before)), maps.index_select(axis, after), share)
