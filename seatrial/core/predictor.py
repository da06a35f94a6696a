"""What is evaluated, seen only through its forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

Gift = Literal["gradients", "logits", "labels"]
Inputs = Tensor | Mapping[str, Tensor]


class Predictor(ABC):
    """An eager module, a captured graph, a runtime session or an endpoint.

    Vision predictors take float32 NCHW RGB in [0, 1] of any batch size and give float32 [batch, classes] for
    classification. Laws: equal inputs give equal outputs; inputs are not changed; a predictor without
    `gradients` returns tensors detached from its inputs.
    """

    @property
    @abstractmethod
    def gives(self) -> frozenset[Gift]:
        """What this predictor can give to an attack: `gradients`, `logits`, `labels`."""

    @abstractmethod
    def __call__(self, inputs: Inputs) -> Tensor:
        """Return the outputs for one batch."""

    def close(self) -> None:
        """Free what the predictor holds (sessions, processes)."""
