"""What an annotation file says about the objects of one picture, before the picture itself is read."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from seatrial.core.runs import unpacked
from seatrial.core.truth import Objects
from seatrial.data.bad_sample import BadSample
from seatrial.errors import missing_extra


@final
@dataclass(frozen=True, eq=False)
class Outline:
    """The shape of an object: polygons (rows of x, y in the unit of its marks) or ready runs over `size_px`."""

    polygons: tuple[Float64[np.ndarray, "points 2"], ...] = ()
    runs: Int32[np.ndarray, " runs"] | None = None
    size_px: tuple[int, int] | None = None


@final
@dataclass(frozen=True, eq=False)
class Marks:
    """The objects of one picture as a file states them.

    `boxes` are x1, y1, x2, y2 in pixels, or in shares of the picture's width and height where `relative`; `kinds` are
    what the file calls the classes; `areas_px` are NaN where the file states none. `outlines` is None where no object
    has one; an object without one among others is its box. `size_px` (height, width) is the picture's, if stated.
    """

    boxes: Float64[np.ndarray, "objects 4"]
    kinds: tuple[str, ...]
    crowd: Bool[np.ndarray, " objects"]
    areas_px: Float64[np.ndarray, " objects"]
    outlines: tuple[Outline | None, ...] | None = None
    relative: bool = False
    size_px: tuple[int, int] | None = None

    def objects(self, classes: Int64[np.ndarray, " objects"], size_px: tuple[int, int], *, masks: bool) -> Objects:
        """Return the objects in a picture of size (height, width), cut off at its border, with masks if wanted.

        Raises BadSample for a picture of another size than stated, a box that lies outside and a mask of another size;
        BadInput where masks are wanted and pycocotools is not installed.
        """
        height, width = size_px
        if self.size_px is not None and sorted(self.size_px) != sorted(size_px):
            raise BadSample(f"{width}x{height} pixels, its annotation says {self.size_px[1]}x{self.size_px[0]}")
        border = np.array([width, height, width, height], dtype=np.float64)
        boxes = self.boxes * border if self.relative else self.boxes
        outside = np.flatnonzero((boxes[:, :2] >= border[:2]).any(1) | (boxes[:, 2:] <= 0).any(1))
        if outside.size:
            x1, y1, x2, y2 = boxes[outside[0]]
            raise BadSample(
                f"object {outside[0] + 1} from {x1:g},{y1:g} to {x2:g},{y2:g} outside its {width}x{height} pixels"
            )
        boxes = np.clip(boxes, 0, border)
        runs = None
        if masks:
            runs = tuple(self._runs(row, boxes[row], size_px) for row in range(len(boxes)))
        areas = np.where(
            np.isnan(self.areas_px), (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), self.areas_px
        )
        return Objects(boxes, classes, self.crowd, areas, runs)

    def content(self) -> bytes:
        """Return bytes that differ where the marks do, for a digest."""
        parts = [repr((self.kinds, self.relative)).encode()]
        parts += [array.tobytes() for array in (self.boxes, self.crowd, self.areas_px)]
        for outline in self.outlines or ():
            if outline is not None:
                parts += [b"|", *(polygon.tobytes() for polygon in outline.polygons), repr(outline.size_px).encode()]
                parts.append(b"" if outline.runs is None else outline.runs.tobytes())
        return b"".join(len(part).to_bytes(8, "little") + part for part in parts)

    def _runs(self, row: int, box: np.ndarray, size_px: tuple[int, int]) -> Int32[np.ndarray, " runs"]:
        outline = None if self.outlines is None else self.outlines[row]
        if outline is not None and outline.runs is not None:
            if outline.size_px != size_px:
                raise BadSample(f"object {row + 1} with a mask of {outline.size_px}, the picture has {size_px}")
            return outline.runs
        x1, y1, x2, y2 = box
        polygons = (np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]),)
        if outline is not None:
            unit = np.array(size_px[::-1], dtype=np.float64) if self.relative else 1
            # Cut at the border first: how long drawing takes grows with how far a corner lies outside.
            polygons = tuple(np.clip(polygon * unit, 0, size_px[::-1]) for polygon in outline.polygons)
        return _drawn(polygons, size_px)


def _drawn(polygons: tuple[np.ndarray, ...], size_px: tuple[int, int]) -> Int32[np.ndarray, " runs"]:
    """Return the union of polygons as COCO draws them."""
    try:
        mask: Any = importlib.import_module("pycocotools.mask")
    except ImportError as error:
        raise missing_extra("pycocotools", "detection", "masks drawn from outlines") from error
    parts = mask.frPyObjects([polygon.reshape(-1).tolist() for polygon in polygons], *size_px)
    runs = unpacked(mask.merge(parts)["counts"].decode())
    assert runs is not None, "pycocotools reads what it writes"
    return np.array(runs, dtype=np.int32)
