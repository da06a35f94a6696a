"""FAB-T: the nearest point of a linearized decision boundary, one class after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from seatrial.core.noise import Attack, Perturbation
from seatrial.core.predictor import Gift, Predictor
from seatrial.errors import BadInput
from seatrial.noise.apgd_walk import Walked
from seatrial.noise.ball import ball_around, budget
from seatrial.noise.fab_walk import boundary_walk
from seatrial.noise.gradient import objective_gradient
from seatrial.noise.in_turn import Walk, in_turn
from seatrial.noise.targets import target_classes


@final
@dataclass(frozen=True, kw_only=True)
class FabT(Attack):
    """Targeted Fast Adaptive Boundary attack (Croce and Hein 2020, arXiv 1907.02044; targets: 2003.01690, section 5).

    `targets` classes of largest clean logits are aimed at in turn, `steps` steps each, from the input itself.
    `epsilon` is a number or text such as "8/255". Raises BadInput for options out of range.
    Departures: a sample leaves at the first misclassified point within epsilon; a farther one is pulled back as in the
    paper. One that is misclassified already, and one without success, come back unchanged.
    """

    epsilon: float | str
    norm: str = "linf"
    steps: int = 100
    targets: int = 9

    def __post_init__(self) -> None:
        budget(self.norm, self.epsilon)
        if min(self.steps, self.targets) < 1:
            raise BadInput(f"{self.steps} steps, {self.targets} targets", "1 or more of each", "take 100 and 9")

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
        """Return per sample a misclassified point within epsilon, else the input; draws nothing from `rng`."""
        ball = ball_around(self.norm, inputs, budget(self.norm, self.epsilon, inputs.shape[1:]))

        def towards(target: Tensor, standing: Tensor) -> Walked:
            origin, own, wanted = inputs.detach()[standing], labels[standing], target[standing][:, None]

            def linearize(point: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
                label, aim = own[rows][:, None], wanted[rows]
                gradient, _, gap = objective_gradient(
                    predictor, point, lambda z: (z.gather(1, aim) - z.gather(1, label))[:, 0]
                )
                return gradient, gap

            return boundary_walk(
                predictor, linearize, origin, origin, ball.select(standing), own, norm=self.norm, steps=self.steps
            )

        def walks(clean: Tensor) -> list[Walk]:
            order = target_classes(clean, labels, self.targets)
            return [partial(towards, order[:, turn]) for turn in range(order.shape[1])]

        return in_turn(predictor, inputs, labels, walks)
