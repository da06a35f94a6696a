"""Ready arrays, as a Python iterable or a DataLoader gives them, as a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np
from torch import Tensor

from seatrial.core.sample import Sample
from seatrial.data.entry_set import digest_of
from seatrial.errors import BadInput


@dataclass(frozen=True, eq=False)
class ArraySet:
    """Labelled arrays at network size with ids by position; `stored` is float32 CHW in [0, 1] or uint8 HWC."""

    name: str
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    stored: tuple[np.ndarray, ...]
    class_names: tuple[str, ...]
    label_rule: str = "given"
    bad: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.labels) == len(self.stored)
        assert all(a < b for a, b in pairwise(self.ids)), "samples must be in order of unique ids"

    @property
    def digest(self) -> str:
        """BLAKE2b over ids, labels and contents (with shape and type)."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return digest_of(
            (name, label, f"{array.dtype}{array.shape}".encode() + array.tobytes())
            for name, label, array in zip(self.ids, self.labels, self.stored)
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        array = self.stored[index]
        if array.dtype == np.uint8:
            array = np.ascontiguousarray(array.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
        else:
            array = array.copy()  # what the caller does with a sample must not change the data set
        return Sample(self.ids[index], self.labels[index], array=array)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def subset(self, indices: Iterable[int]) -> Self:
        """Return the samples at these positions, in order of id."""
        kept = sorted(set(indices))
        return replace(
            self,
            ids=tuple(self.ids[index] for index in kept),
            labels=tuple(self.labels[index] for index in kept),
            stored=tuple(self.stored[index] for index in kept),
        )

    def without(self, ids: Iterable[str]) -> Self:
        """Return the samples whose ids are not among `ids`."""
        unwanted = frozenset(ids)
        return self.subset(index for index, name in enumerate(self.ids) if name not in unwanted)


def pairs(source: Iterable[Any]) -> Iterator[tuple[Any, int]]:
    """Yield single (input, label) pairs of an iterable of pairs or of batches (a DataLoader's, for example).

    A batch is recognised by its labels having an axis. Raises BadInput for anything else.
    """
    for position, item in enumerate(_elements(source)):
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise BadInput(
                f"item {position} of the data, {_described(item)}",
                "a pair (input, label) or a batch of them",
                "let the iterable give tuples",
            )
        inputs, labels = item[0], item[1]
        if np.ndim(_plain(labels)) == 0:
            yield inputs, _label(labels, position)
            continue
        if len(inputs) != len(labels):
            raise BadInput(
                f"batch {position} with {len(inputs)} inputs and {len(labels)} labels",
                "one label an input",
                "give labels as integers, not as one-hot vectors",
            )
        for one, label in zip(inputs, labels):
            yield one, _label(label, position)


def checked_array(value: Any, position: int) -> np.ndarray:
    """Return float32 CHW in [0, 1] or uint8 HWC, as a copy; uint8 CHW is turned. Raises BadInput for anything else."""
    array = np.array(_plain(value))
    shape = array.shape
    if array.dtype == np.uint8 and len(shape) == 3:
        if shape[2] == 3:
            return array
        if shape[0] == 3:
            return np.ascontiguousarray(array.transpose(1, 2, 0))
    elif np.issubdtype(array.dtype, np.floating) and len(shape) == 3 and shape[0] == 3 and array.size:
        low, high = float(array.min()), float(array.max())
        if low >= 0 and high <= 1:  # false for NaN too
            return array.astype(np.float32)
        raise BadInput(
            f"input {position} with values from {low:.3g} to {high:.3g}",
            "values from 0 to 1 (normalization is a part of the model)",
            "leave the Normalize out of the transforms, or divide by 255",
        )
    raise BadInput(
        f"input {position}, {_described(value)}",
        "3 channels: float CHW in [0, 1] or uint8 HWC",
        "convert it (transforms.ToTensor gives the first)",
    )


def _elements(source: Iterable[Any]) -> Iterator[Any]:
    if hasattr(source, "__iter__"):
        yield from source
        return
    # A map-style torch Dataset often has only these two, and never raises the IndexError that iteration waits for.
    length, item = getattr(source, "__len__", None), getattr(source, "__getitem__", None)
    if length is None or item is None:
        raise BadInput(
            f"data of type {type(source).__name__}", "a path or an iterable", "see seatrial.data.files.open_data"
        )
    for position in range(length()):
        yield item(position)


def _plain(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _label(value: Any, position: int) -> int:
    found = np.asarray(_plain(value))
    if found.shape == () and np.issubdtype(found.dtype, np.integer):
        return int(found)
    raise BadInput(f"label {value!r} at position {position}", "an integer", "give the class index")


def _described(value: Any) -> str:
    array = _plain(value)
    if isinstance(array, np.ndarray):
        return f"{array.dtype} of shape {'x'.join(map(str, array.shape)) or '()'}"
    return f"a {type(value).__name__}" + (f" of length {len(value)}" if isinstance(value, Sequence) else "")
