"""A sample as it came: encoded bytes or a ready array, with a stable id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from seatrial.core.truth import Truth


@dataclass(frozen=True)
class Sample:
    """One labelled input: `encoded` bytes of an image file, or `array` (float32 CHW RGB in [0, 1]) at network size.

    `label` is its class; where more is known than a class (boxes, masks, tokens), that is `target`, and the label 0.
    """

    id: str
    label: int
    encoded: bytes | None = None
    array: np.ndarray | None = None
    target: Truth | None = None


@dataclass(frozen=True)
class Placement:
    """Where the source stands in the network's input: input_px = source_px * scale + offset_px, as (rows, columns).

    Coordinates count from the outer edge of the first pixel, so that a box keeps its borders; what lies outside the
    input was cropped away. The scale is that of the whole pixels the picture was resized to, each axis by itself.
    """

    scale: tuple[float, float]
    offset_px: tuple[int, int]

    def to_input(self, boxes_px: Float[np.ndarray, "boxes 4"]) -> Float[np.ndarray, "boxes 4"]:
        """Return boxes of the source (x1, y1, x2, y2) in pixels of the input, not clipped."""
        (scale_y, scale_x), (top, left) = self.scale, self.offset_px
        return boxes_px * (scale_x, scale_y, scale_x, scale_y) + np.array((left, top, left, top), dtype=np.float64)

    def to_source(self, boxes_px: Float[np.ndarray, "boxes 4"]) -> Float[np.ndarray, "boxes 4"]:
        """Return boxes of the input (x1, y1, x2, y2) in pixels of the source, not clipped."""
        (scale_y, scale_x), (top, left) = self.scale, self.offset_px
        return (boxes_px - np.array((left, top, left, top), dtype=np.float64)) / (scale_x, scale_y, scale_x, scale_y)


@dataclass(frozen=True)
class Picture:
    """A decoded picture: uint8 HWC RGB, and the size (height, width) in pixels of the source it was cut from.

    `placement` is the map from and to the source; None where it was not kept (`seatrial.data.load.placed` gives it
    from the pipeline and the size of the source).
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    source_size_px: tuple[int, int]
    placement: Placement | None = None


@runtime_checkable
class Dataset(Protocol):
    """Labelled samples in order of id, read lazily; `digest` is a hash of ids, labels and contents."""

    @property
    def name(self) -> str: ...
    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def labels(self) -> Sequence[int]: ...
    @property
    def class_names(self) -> Sequence[str]: ...
    @property
    def digest(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...
    def __iter__(self) -> Iterator[Sample]: ...
