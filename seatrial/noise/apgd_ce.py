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
from seatrial.noise.apgd import linf_start, require_linf, walk
from seatrial.noise.ball import LinfBall, budget


@final
@dataclass(frozen=True, kw_only=True)
class ApgdCe(Attack):
    """Auto-PGD on the cross entropy (Croce and Hein 2020, arXiv 2003.01690), the first stage of AutoAttack.

    `epsilon` is a number or text such as "8/255"; `steps` and `rho` are the authors'. Raises BadInput for options out
    of range and for other norms than L-inf.
    Departures: one start; a sample leaves at its first misclassified point, also where that is its start.
    """

    epsilon: float | str
    norm: str = "linf"
    steps: int = 100
    rho: float = 0.75

    def __post_init__(self) -> None:
        budget(self.norm, self.epsilon)
        require_linf(self.norm, "apgd_ce")
        if self.steps < 1 or not 0 < self.rho < 1:
            raise BadInput(f"{self.steps} steps, rho {self.rho}", "1 step or more, 0 < rho < 1", "take 100 and 0.75")

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
        """Return per sample a misclassified point, else the one of largest loss; `rng[i]` draws the start of i."""
        epsilon = budget(self.norm, self.epsilon)
        ball = LinfBall.around(inputs, epsilon)
        start = linf_start(inputs, ball, epsilon, rng)
        walked = walk(
            predictor,
            start,
            ball,
            labels,
            lambda logits, rows: F.cross_entropy(logits, labels[rows], reduction="none"),
            norm=self.norm,
            epsilon=epsilon,
            steps=self.steps,
            rho=self.rho,
        )
        return Perturbation(walked.point, walked.zero_gradient, walked.queries)
