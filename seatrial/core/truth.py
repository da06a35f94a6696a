"""What is known about a sample beyond a class: objects, a map of classes, tokens, choices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64


@final
@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of a picture, in pixels of the source as a viewer shows it (upright).

    `boxes_px` are x1, y1, x2, y2 from the outer edge of the first pixel; `classes` count from 0. A `crowd` stands for
    any number of objects: what is found in it is neither right nor wrong. `areas_px` sort objects by size (COCO's
    `area`, that of the mask). `runs` are masks as `seatrial.core.runs` writes them, None where only boxes are known.
    """

    boxes_px: Float64[np.ndarray, "objects 4"]
    classes: Int64[np.ndarray, " objects"]
    crowd: Bool[np.ndarray, " objects"]
    areas_px: Float64[np.ndarray, " objects"]
    runs: tuple[Int32[np.ndarray, " runs"], ...] | None = None

    def __len__(self) -> int:
        return len(self.boxes_px)


@final
@dataclass(frozen=True, eq=False)
class ClassMap:
    """The class of each pixel of the source, as a viewer shows it (upright); `IGNORED` pixels count for nothing."""

    classes: Int64[np.ndarray, "height width"]


IGNORED = 255
"""The class of pixels that no metric counts, as PASCAL VOC writes it."""


@final
@dataclass(frozen=True)
class Tokens:
    """A text as token ids, the token that begins it included where the model wants one.

    The last `judged` ids are those whose likelihood counts; None: all but the first, which nothing stands before.
    """

    ids: tuple[int, ...]
    judged: int | None = field(default=None, repr=False)


@final
@dataclass(frozen=True)
class Choices:
    """A question: ids of the prompt, ids of each possible continuation, their lengths in bytes, the right one."""

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    answer: int


Truth = Objects | ClassMap | Tokens | Choices
