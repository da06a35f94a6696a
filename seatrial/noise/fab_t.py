"""FAB-T: the nearest point of a linearized decision boundary, one class after another."""

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
from seatrial.errors import BadInput, NotApplicable
from seatrial.noise.ball import ball_around, budget
from seatrial.noise.fab_walk import boundary_walk
from seatrial.noise.gradient import objective_gradient
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
        if "gradients" not in predictor.gives:
            raise NotApplicable("the predictor gives no gradients")
        inputs = inputs.detach()
        with torch.no_grad():
            clean = predictor(inputs)
        order = target_classes(clean, labels, self.targets)
        found, zeros = inputs.clone(), np.full(len(inputs), np.nan)
        queries = np.ones(len(inputs), dtype=np.int64)
        standing = (clean.argmax(1) == labels).nonzero()[:, 0]
        for turn in range(order.shape[1]):
            if not len(standing):
                break
            own, target = labels[standing][:, None], order[standing, turn][:, None]

            def linearize(
                point: Tensor, rows: Tensor, own: Tensor = own, target: Tensor = target
            ) -> tuple[Tensor, Tensor, Tensor]:
                return objective_gradient(
                    predictor, point, lambda z: (z.gather(1, target[rows]) - z.gather(1, own[rows]))[:, 0]
                )

            origin = inputs[standing]
            walked = boundary_walk(
                linearize, origin, origin, ball.select(standing), own[:, 0], norm=self.norm, steps=self.steps
            )
            found[standing] = walked.point
            at = standing.cpu().numpy()
            if turn == 0:
                zeros[at] = walked.zero_gradient
            queries[at] += walked.asked
            standing = standing[~walked.fallen]
        return Perturbation(found, zeros, queries)
