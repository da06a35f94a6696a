"""A predictor around any runtime's session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from seatrial.core.predictor import Gift, Inputs, Predictor
from seatrial.deploy.input_adapter import InputAdapter
from seatrial.errors import BadInput
from seatrial.models.port import Port

Session = Callable[[Mapping[str, np.ndarray]], np.ndarray]


@dataclass(frozen=True, eq=False)
class SessionPredictor(Predictor):
    """A model file run by a runtime: `session` takes arrays by input name and returns the first output.

    Batches of any size are looped in pieces of the file's own batch; a last piece that is too small is filled up
    with its last row, whose answers are dropped.
    """

    session: Session
    inputs: tuple[Port, ...]
    adapter: InputAdapter
    """How the first input is fed; further inputs (of language models) only change their type."""
    on_close: Callable[[], None] | None = field(default=None)

    @property
    def gives(self) -> frozenset[Gift]:
        return frozenset({"logits", "labels"})

    def __call__(self, inputs: Inputs) -> Tensor:
        arrays = self._arrays(inputs)
        count = len(next(iter(arrays.values())))
        step = self.adapter.batch or max(count, 1)
        parts = []
        for start in range(0, count, step):
            piece = {name: _filled(array[start : start + step], step) for name, array in arrays.items()}
            parts.append(self.adapter.read(self.session(piece))[: min(step, count - start)])
        if not parts:
            raise BadInput("a batch of no samples", "at least one", "leave empty batches out")
        return torch.from_numpy(parts[0].copy() if len(parts) == 1 else np.concatenate(parts))

    def close(self) -> None:
        if self.on_close is not None:
            self.on_close()

    def _arrays(self, inputs: Inputs) -> dict[str, np.ndarray]:
        if isinstance(inputs, Tensor):
            if len(self.inputs) != 1:
                wanted = ", ".join(info.name for info in self.inputs)
                raise BadInput("one tensor", f"the inputs {wanted}", "pass them by name")
            return {self.inputs[0].name: self._picture(inputs)}
        missing = [info.name for info in self.inputs if info.name not in inputs]
        if missing:
            raise BadInput(f"inputs {', '.join(inputs)}", f"also {', '.join(missing)}", "pass them by name")
        arrays = {}
        for i, info in enumerate(self.inputs):
            tensor = inputs[info.name]
            arrays[info.name] = self._picture(tensor) if i == 0 else tensor.detach().cpu().numpy().astype(info.dtype)
        return arrays

    def _picture(self, tensor: Tensor) -> np.ndarray:
        array = self.adapter.feed(tensor.detach().cpu().numpy())
        wanted = self.inputs[0].shape[1:]
        if array.ndim != len(wanted) + 1 or any(w not in (None, d) for w, d in zip(wanted, array.shape[1:])):
            raise BadInput(
                f"an input of shape {list(tensor.shape)} (fed as {list(array.shape)})",
                f"[batch, {', '.join(str(size or 'any') for size in wanted)}]",
                "resize the pictures to the size that the model file takes",
            )
        return array


def _filled(array: np.ndarray, size: int) -> np.ndarray:
    if len(array) == size:
        return array
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])
