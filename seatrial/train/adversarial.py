"""Adversarial training: the worst pictures of the moment are what the network learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from seatrial.errors import BadInput
from seatrial.train.objective import Objective
from seatrial.train.shift_flip import ShiftFlip, unit

Attacked = Callable[[nn.Module, Tensor, Tensor, np.random.Generator], Tensor]
"""From a module in eval mode, pictures in [0, 1], labels and chance to pictures that the module should get wrong."""


@final
@dataclass(frozen=True, kw_only=True)
class Adversarial(Objective):
    """Cross entropy on the pictures that `attack` finds against the network as it stands (Madry et al. 2018, eq. 2.1).

    `clean` is the share of the loss that unattacked pictures have (Goodfellow et al. 2015, section 6; 0 in Madry et
    al.). `augment` acts before the attack. Raises BadInput for a share that is not from 0 to 1.
    Departures: the attack looks at the network in eval mode, so that running statistics see no half-made examples and a
    picture's attack does not depend on the batch around it.
    """

    attack: Attacked
    clean: float = 0.0
    augment: ShiftFlip | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.clean <= 1:
            raise BadInput(f"a share of {self.clean} clean pictures", "0 to 1", "0 trains on attacked pictures alone")

    def loss(
        self,
        module: nn.Module,
        inputs: Float[Tensor, "batch 3 height width"],
        labels: Int64[Tensor, " batch"],
        *,
        rng: np.random.Generator,
    ) -> Float[Tensor, ""]:
        """Return the mean cross entropy on attacked pictures, mixed with that on clean ones."""
        shown = unit(inputs) if self.augment is None else self.augment(inputs, rng)
        modes = {part: part.training for part in module.modules()}
        module.eval()
        try:
            found = self.attack(module, shown, labels, rng).detach()
        finally:
            for part, training in modes.items():
                part.training = training
        loss = F.cross_entropy(module(found), labels)
        if self.clean:
            loss = (1 - self.clean) * loss + self.clean * F.cross_entropy(module(shown), labels)
        return loss
