"""Auto-PGD: one walk after another, each on what the ones before left standing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, final

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from seatrial.core.noise import Perturbation
from seatrial.core.predictor import Predictor
from seatrial.errors import BadInput
from seatrial.noise.apgd_l1 import sparse_walk
from seatrial.noise.apgd_walk import Walked, walk
from seatrial.noise.ball import ball_around, budget, require_unit_box
from seatrial.noise.gradient import objective_gradient
from seatrial.noise.in_turn import in_turn
from seatrial.noise.sphere import on_sphere


class Objective(Protocol):
    """From logits [count, classes] and the rows of the batch they belong to, to values [count] that walks raise."""

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor: ...


@final
@dataclass(frozen=True, kw_only=True)
class AutoPgd:
    """The walks of Auto-PGD (Croce and Hein 2020, arXiv 2003.01690; in L1 Croce and Hein 2021, arXiv 2103.01208).

    `draws` is the number of forward passes over which gradients and values are averaged, for predictors that answer
    by chance; the last one says whether a point is misclassified. Raises BadInput for options out of range.
    """

    norm: str
    epsilon: float | str
    steps: int
    rho: float
    draws: int = 1

    def __post_init__(self) -> None:
        budget(self.norm, self.epsilon)
        if min(self.steps, self.draws) < 1 or not 0 < self.rho < 1:
            raise BadInput(
                f"{self.steps} steps, {self.draws} draws, rho {self.rho}",
                "1 or more steps and draws, 0 < rho < 1",
                "AutoAttack takes 100, 1 and 0.75",
            )

    def climb(
        self,
        predictor: Predictor,
        inputs: Float[Tensor, "batch channels height width"],
        labels: Int64[Tensor, " batch"],
        objectives: Callable[[Tensor], Sequence[Objective]],
        *,
        rng: Sequence[np.random.Generator],
    ) -> Perturbation:
        """Walk each sample up one objective after another, from a new random start each, until it is misclassified.

        `objectives` makes them from the logits of `inputs`. Returns per sample the misclassified point, else the best
        one of its last walk; `rng[i]` draws the starts of sample i. Raises NotApplicable without gradients.
        """
        epsilon = budget(self.norm, self.epsilon, inputs.shape[1:])
        require_unit_box(inputs)

        def up(objective: Objective, standing: Tensor) -> Walked:
            chosen = [rng[i] for i in standing.tolist()]
            start = inputs.detach()[standing]
            return self._walk(predictor, start, labels[standing], objective, standing, epsilon, chosen)

        return in_turn(predictor, inputs, labels, lambda clean: [partial(up, goal) for goal in objectives(clean)])

    def _walk(
        self,
        predictor: Predictor,
        inputs: Tensor,
        labels: Tensor,
        objective: Objective,
        origin: Tensor,
        epsilon: float,
        rng: Sequence[np.random.Generator],
    ) -> Walked:
        def ask(point: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            at = origin[rows]
            gradient, logits, value = objective_gradient(predictor, point, lambda z: objective(z, at))
            for _ in range(self.draws - 1):
                more, logits, other = objective_gradient(predictor, point, lambda z: objective(z, at))
                gradient, value = gradient + more, value + other
            return gradient / self.draws, logits, value / self.draws

        if self.norm == "l1":
            walked = sparse_walk(ask, inputs, labels, epsilon=epsilon, steps=self.steps, rng=rng)
        else:
            ball = ball_around(self.norm, inputs, epsilon)
            start = ball.project(on_sphere(inputs, self.norm, epsilon, rng))
            walked = walk(ask, start, ball, labels, norm=self.norm, epsilon=epsilon, steps=self.steps, rho=self.rho)
        return replace(walked, asked=walked.asked * self.draws)
