"""What subjects answer in the undisturbed system, beside which a system noise is judged sample by sample."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from seatrial.core.predictor import Predictor
from seatrial.core.sample import Picture
from seatrial.core.task import Classification, Task

_LIMIT_BYTES = 500_000_000


@final
class References:
    """Outputs by predictor and batch, at most `limit_bytes` of them; the oldest are dropped and computed again.

    Law: what `outputs` gives is what the predictor answers; nothing depends on the memory but time.
    """

    def __init__(self, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._limit, self._held = limit_bytes, 0
        self._kept: OrderedDict[tuple[Any, ...], tuple[Predictor, Any]] = OrderedDict()

    def outputs(self, predictor: Predictor, ids: Sequence[str], inputs: Tensor) -> Any:
        """Return the predictor's outputs for `inputs`, the samples `ids` of the undisturbed pipeline."""
        # The predictor is kept with its outputs, so that no other one can get its identity meanwhile.
        key = (id(predictor), *ids)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][1]
        with torch.no_grad():
            found = predictor(inputs)
        size = sum(tensor.nbytes for tensor in _tensors(found))
        if size <= self._limit:
            self._kept[key] = (predictor, found)
            self._held += size
            while self._held > self._limit:
                _, (_, dropped) = self._kept.popitem(last=False)
                self._held -= sum(tensor.nbytes for tensor in _tensors(dropped))
        return found


def moved(task: Task, reference: Any, outputs: Any, count: int) -> dict[str, pa.Array]:
    """Return, for each of `count` samples, how far its outputs moved from the reference.

    `output_difference` is the largest absolute difference of an entry (infinite where shapes differ); `kl`, for
    classification, the Kullback-Leibler divergence of the new class probabilities from the reference ones, in nats.
    """
    columns = {"output_difference": pa.array(_difference(reference, outputs, count), pa.float32())}
    if isinstance(task, Classification):
        columns["kl"] = pa.array(task.divergence(reference, outputs), pa.float32())
    return columns


def picture_difference(first: Picture, second: Picture) -> float:
    """Return the mean absolute difference of two pictures in levels of 0 to 255."""
    return float(np.abs(first.pixels.astype(np.int16) - second.pixels.astype(np.int16)).mean())


def unequal_rows(first: pa.Table, second: pa.Table) -> pa.Array:
    """Return for each row of two tables whether they differ."""
    return pa.array([a != b for a, b in zip(first.to_pylist(), second.to_pylist(), strict=True)], pa.bool_())


def _difference(first: Any, second: Any, count: int) -> Float[np.ndarray, " batch"]:
    found = np.zeros(count, dtype=np.float32)
    for row in range(count):
        pairs = list(zip(_tensors(_of_sample(first, row)), _tensors(_of_sample(second, row)), strict=False))
        for one, other in pairs:
            if one.shape != other.shape:
                found[row] = np.inf
            elif one.numel() and not torch.equal(one, other):
                gap = float((one.double() - other.double()).abs().max())
                found[row] = max(found[row], np.inf if np.isnan(gap) else np.float32(gap))
    return found


def _of_sample(outputs: Any, row: int) -> Any:
    """Return the part of one sample: a row of a tensor, or an entry of a detector's list."""
    if isinstance(outputs, Tensor):
        return outputs[row]
    if isinstance(outputs, Mapping):
        return {name: _of_sample(part, row) for name, part in outputs.items()}
    if isinstance(outputs, tuple):  # tensors side by side, each a batch
        return tuple(_of_sample(part, row) for part in outputs)
    return outputs[row]


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [tensor for part in parts for tensor in _tensors(part)]
