"""FGSM: one step along the sign of the gradient."""

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
from seatrial.noise.ascent import steepest
from seatrial.noise.ball import ball_around, budget
from seatrial.noise.gradient import loss_gradient, zero_share


@final
@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """Fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572, section 4), untargeted, no random start.

    `epsilon` is a number or text such as "2/255". Raises BadInput for other values.
    Departures: none in the step. Every sample is attacked, also one that is misclassified already; a pixel whose
    gradient is exactly zero stays as it is. In L2 and L1 the step is the gradient scaled to length epsilon.
    """

    epsilon: float | str
    norm: str = "linf"

    def __post_init__(self) -> None:
        budget(self.norm, self.epsilon)

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
        """Return the point of the ball that the gradient points to; draws nothing from `rng`."""
        epsilon = budget(self.norm, self.epsilon, inputs.shape[1:])
        ball = ball_around(self.norm, inputs, epsilon)
        gradient, _ = loss_gradient(predictor, inputs, labels)
        zeros = zero_share(gradient)
        found = ball.project(torch.add(inputs.detach(), steepest(gradient, self.norm), alpha=epsilon))
        return Perturbation(found, zeros, np.ones(len(inputs), dtype=np.int64))
