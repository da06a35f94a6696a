"""A sample as it came: encoded bytes or a ready array, with a stable id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True)
class Sample:
    """One labelled input: `encoded` bytes of an image file, or `array` (float32 CHW RGB in [0, 1]) at network size."""

    id: str
    label: int
    encoded: bytes | None = None
    array: np.ndarray | None = None


@dataclass(frozen=True)
class Picture:
    """A decoded picture: uint8 HWC RGB, and the size (height, width) in pixels of the source it was cut from."""

    pixels: UInt8[np.ndarray, "height width 3"]
    source_size_px: tuple[int, int]


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
