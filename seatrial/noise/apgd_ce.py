"""APGD-CE: Auto-PGD on the cross entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from seatrial.core.noise import Attack, Perturbation
from seatrial.core.predictor import Gift, Predictor
from seatrial.errors import BadInput
from seatrial.noise.apgd import AutoPgd


@final
@dataclass(frozen=True, kw_only=True)
class ApgdCe(Attack):
    """Auto-PGD on the cross entropy (Croce and Hein 2020, arXiv 2003.01690), the first stage of AutoAttack.

    `restarts` walks of `steps` steps, by the authors' settings (in L1 AutoAttack takes 5 restarts). `draws` averages
    that many gradients, for predictors that answer by chance. `epsilon` is a number or text such as "8/255". Raises
    BadInput for options out of range.
    Departures: a sample leaves at its first misclassified point; one that is misclassified already comes back as it is.
    """

    epsilon: float | str
    norm: str = "linf"
    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    draws: int = 1

    def __post_init__(self) -> None:
        self._walks()
        if self.restarts < 1:
            raise BadInput(f"{self.restarts} restarts", "1 or more", "AutoAttack takes 1, in L1 5")

    @property
    def needs(self) -> frozenset[Gift]:
        """Gradients and logits."""
        return frozenset({"gradients", "logits"})

    def perturb(
        self,
        predictor: Predictor,
        inputs: Float[Tensor, "batch 3 height width"],
        labels: Int64[Tensor, " batch"],
        *,
        rng: Sequence[np.random.Generator],
    ) -> Perturbation:
        """Return per sample a misclassified point, else the last walk's of largest loss; `rng[i]` draws its starts."""

        def loss(logits: Tensor, rows: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels[rows], reduction="none")

        return self._walks().climb(predictor, inputs, labels, lambda _: [loss] * self.restarts, rng=rng)

    def _walks(self) -> AutoPgd:
        return AutoPgd(norm=self.norm, epsilon=self.epsilon, steps=self.steps, rho=self.rho, draws=self.draws)
