"""APGD-DLR: Auto-PGD on the difference of logits ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from seatrial.core.noise import Attack, Perturbation
from seatrial.core.predictor import Gift, Predictor
from seatrial.errors import BadInput
from seatrial.noise.apgd import AutoPgd


@final
@dataclass(frozen=True, kw_only=True)
class ApgdDlr(Attack):
    """Untargeted Auto-PGD on the DLR loss (Croce and Hein 2020, arXiv 2003.01690, equation 4).

    `restarts` walks of `steps` steps. `draws` averages that many gradients, for predictors that answer by chance.
    Networks of fewer than three classes have no DLR; they are attacked on the difference of the two logits. `epsilon`
    is a number or text such as "8/255". Raises BadInput for options out of range.
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
            raise BadInput(f"{self.restarts} restarts", "1 or more", "AutoAttack takes 1, its version plus 5")

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
            return dlr(logits, labels[rows])

        return self._walks().climb(predictor, inputs, labels, lambda _: [loss] * self.restarts, rng=rng)

    def _walks(self) -> AutoPgd:
        return AutoPgd(norm=self.norm, epsilon=self.epsilon, steps=self.steps, rho=self.rho, draws=self.draws)


def dlr(logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return the difference of logits ratio (Croce and Hein 2020, equation 4), above 0 where misclassified."""
    own = logits.gather(1, labels[:, None])[:, 0]
    gap = logits.scatter(1, labels[:, None], -torch.inf).amax(1) - own
    if logits.shape[1] < 3:
        return gap
    top = logits.topk(3, dim=1).values
    return gap / (top[:, 0] - top[:, 2] + 1e-12)
