"""MIM: steps along the sign of a gradient that remembers the ones before it."""

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
from seatrial.noise.ascent import random_start, steepest
from seatrial.noise.ball import ball_around, budget
from seatrial.noise.gradient import loss_gradient, zero_share

_PUBLISHED_STEP = 0.002
"""RobustART's, whatever epsilon is: more than the whole budget of 0.5/255."""


@final
@dataclass(frozen=True, kw_only=True)
class MIM(Attack):
    """Momentum iterative method (Dong et al. 2018, arXiv 1710.06081, algorithm 1), untargeted, from a random start.

    The settings are RobustART's: 20 steps, decay 1, gradients divided by their mean absolute value over a sample.
    `step` "scaled" takes 3/40 of epsilon, "published" 0.002 (L-inf only). `epsilon` is a number or text such as
    "2/255". Raises BadInput for options out of range.
    Departures: the paper divides by the sum of absolute values, which differs by a factor that the sign ignores.
    """

    epsilon: float | str
    norm: str = "linf"
    steps: int = 20
    decay: float = 1.0
    step: Literal["scaled", "published"] = "scaled"
    relative_step: float = 3 / 40
    random_start: bool = True

    def __post_init__(self) -> None:
        budget(self.norm, self.epsilon)
        if self.steps < 1:
            raise BadInput(f"{self.steps} steps", "at least 1", "RobustART takes 20")
        if not 0 <= self.decay <= 1 or not 0 < self.relative_step <= 2:
            raise BadInput(
                f"decay {self.decay}, relative step {self.relative_step}",
                "a decay from 0 to 1 and a step above 0 and at most 2",
                "RobustART takes 1 and 3/40",
            )
        if self.step not in ("scaled", "published") or (self.step == "published" and self.norm != "linf"):
            raise BadInput(f"step '{self.step}' in {self.norm}", "'scaled', or in L-inf 'published'", "leave it out")

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
        size = _PUBLISHED_STEP if self.step == "published" else self.relative_step * epsilon
        started = inputs.detach().clone()
        point = random_start(inputs, ball, self.norm, epsilon, rng) if self.random_start else started
        memory = torch.zeros_like(point)
        zeros = np.full(len(inputs), np.nan)
        for step in range(self.steps):
            gradient, _ = loss_gradient(predictor, point, labels)
            if step == 0:
                zeros = zero_share(gradient)
            mean = gradient.abs().flatten(1).mean(1).clamp(min=1e-30)
            memory.mul_(self.decay).add_(gradient / mean[:, None, None, None])
            point = ball.project(point.add(steepest(memory, self.norm), alpha=size))
        return Perturbation(point, zeros, np.full(len(inputs), self.steps, dtype=np.int64))
