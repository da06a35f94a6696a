"""What is evaluated, seen only through its forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

Gift = Literal["gradients", "logits", "labels"]
Inputs = Tensor | Mapping[str, Tensor]


class Predictor(ABC):
    """An eager module, a captured graph, a runtime session or an endpoint.

    Vision predictors take float32 NCHW RGB in [0, 1] of any batch size and give float32 [batch, classes] for
    classification; each task says what it reads (a list with an entry a picture, tensors side by side). Laws: equal
    inputs give equal outputs; inputs are not changed; a predictor without `gradients` returns tensors detached from
    its inputs.
    """

    @property
    @abstractmethod
    def gives(self) -> frozenset[Gift]:
        """What this predictor can give to an attack: `gradients`, `logits`, `labels`."""

    @abstractmethod
    def __call__(self, inputs: Inputs) -> Any:
        """Return the outputs for one batch."""

    def close(self) -> None:
        """Free what the predictor holds (sessions, processes)."""
