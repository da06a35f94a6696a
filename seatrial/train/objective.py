"""What a step of training makes smaller."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor, nn


class Objective(ABC):
    """A loss that may draw: what a method of training makes of a batch.

    Laws: finite and differentiable by the module's parameters; arguments other than the module's running statistics
    are unchanged, the mode of the module too; equal `rng` states give equal losses.
    """

    @abstractmethod
    def loss(
        self, module: nn.Module, inputs: Tensor, labels: Int64[Tensor, " batch"], *, rng: np.random.Generator
    ) -> Float[Tensor, ""]:
        """Return the loss of `module` on one batch of what the loop was given to train on."""
