"""PGD: many small steps up the gradient, projected onto the ball."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from seatrial.core.noise import Attack, Perturbation
from seatrial.core.predictor import Gift, Predictor
from seatrial.errors import BadInput
from seatrial.noise.ascent import random_start, sparse_ascent, steepest
from seatrial.noise.ball import ball_around, budget
from seatrial.noise.gradient import loss_gradient, zero_share
from seatrial.noise.margin import margin

_PUBLISHED_L1_STEP = 120.0
"""RobustART's, whatever epsilon is: at small budgets a step leaves the ball, and the walk hops between its corners."""


@final
@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient descent on the negative loss (Madry et al. 2018, arXiv 1706.06083, section 2.1), untargeted.

    The defaults are those of RobustART: 20 steps of 3/40 epsilon from a uniformly random point of the ball.
    `epsilon` is a number or text such as "2/255". `stop_early` leaves a sample at the first point that is
    misclassified and drops it from the batch: a multiple faster, but the example is less sure to carry over to
    another model, so it is off where an example is judged on a deployed predictor too. In L1, `step` "published"
    takes RobustART's: 120, whatever epsilon is, along the scaled gradient; "scaled" spreads 3/40 epsilon over the
    `l1_share` of entries with the largest gradients (SLIDE, Tramer and Boneh 2019, arXiv 1904.13000), which is much
    stronger: at 2 on CIFAR-10 with a ResNet-20 it leaves 17 % of 64 pictures, the published one 64 %. Raises BadInput
    for options out of range.
    Departures: the L1 projection is exact, where the Adversarial Robustness Toolbox scales; the L-inf ball is exact in
    float32; every sample is attacked, also one that is misclassified already (with `stop_early` such a sample comes
    back at its random start).
    """

    epsilon: float | str
    norm: str = "linf"
    steps: int = 20
    relative_step: float = 3 / 40
    random_start: bool = True
    stop_early: bool = False
    step: Literal["scaled", "published"] = "scaled"
    l1_share: float = 0.01

    def __post_init__(self) -> None:
        budget(self.norm, self.epsilon)
        if self.steps < 1:
            raise BadInput(f"{self.steps} steps", "at least 1", "RobustART takes 20")
        if not 0 < self.relative_step <= 2:
            raise BadInput(f"relative step {self.relative_step}", "above 0 and at most 2", "RobustART takes 3/40")
        if self.step not in ("scaled", "published") or (self.step == "published" and self.norm != "l1"):
            raise BadInput(f"step '{self.step}' in {self.norm}", "'scaled', or in L1 'published'", "leave it out")
        if not 0 < self.l1_share <= 1:
            raise BadInput(f"l1_share {self.l1_share}", "above 0 and at most 1", "the authors of SLIDE take 0.01")

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
        """Return the last point of each sample's walk; `rng[i]` draws the start of sample i and nothing else."""
        epsilon = budget(self.norm, self.epsilon, inputs.shape[1:])
        ball = ball_around(self.norm, inputs, epsilon)
        size = _PUBLISHED_L1_STEP if self.step == "published" else self.relative_step * epsilon
        started = inputs.detach().clone()
        point = random_start(inputs, ball, self.norm, epsilon, rng) if self.random_start else started
        walking = torch.arange(len(inputs), device=inputs.device)
        found = torch.empty_like(point)
        zeros = np.full(len(inputs), np.nan)
        queries = np.zeros(len(inputs), dtype=np.int64)
        for step in range(self.steps):
            gradient, logits = loss_gradient(predictor, point, labels)
            queries[walking.cpu().numpy()] += 1
            if step == 0:
                zeros = zero_share(gradient)
            if self.stop_early:
                fallen = margin(logits, labels) < 0
                if bool(fallen.any()):
                    keep = ~fallen
                    found[walking[fallen]] = point[fallen]
                    walking, labels, ball = walking[keep], labels[keep], ball.select(keep)
                    point, gradient = point[keep], gradient[keep]
                    if not len(walking):
                        break
            point = ball.project(point.add(self._direction(gradient, point), alpha=size))
        found[walking] = point
        return Perturbation(found, zeros, queries)

    def _direction(self, gradient: Tensor, point: Tensor) -> Tensor:
        if self.norm == "l1" and self.step == "scaled":
            return sparse_ascent(gradient, point, self.l1_share)
        return steepest(gradient, self.norm)
