"""APGD-T: Auto-PGD on the difference of logits ratio, towards one class after another."""

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
from seatrial.noise.apgd import AutoPgd, Objective
from seatrial.noise.targets import target_classes


@final
@dataclass(frozen=True, kw_only=True)
class ApgdT(Attack):
    """Targeted Auto-PGD on the DLR loss (Croce and Hein 2020, arXiv 2003.01690, equation 6), AutoAttack's second stage.

    The targets are the `targets` classes of largest clean logits beside the label, one walk of `steps` steps each, in
    that order (in L1 AutoAttack takes 5). Networks of fewer than four classes have no targeted DLR; they are attacked
    on the difference of the two logits. `epsilon` is a number or text such as "8/255". Raises BadInput for options out
    of range.
    Departures: a sample leaves at its first misclassified point, whichever class that is; one that is misclassified
    already comes back as it is.
    """

    epsilon: float | str
    norm: str = "linf"
    steps: int = 100
    targets: int = 9
    rho: float = 0.75

    def __post_init__(self) -> None:
        self._walks()
        if self.targets < 1:
            raise BadInput(f"{self.targets} targets", "1 or more", "AutoAttack takes 9, in L1 5")

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

        def losses(clean: Tensor) -> list[Objective]:
            order = target_classes(clean, labels, self.targets)

            def loss(logits: Tensor, rows: Tensor, turn: int) -> Tensor:
                return targeted_dlr(logits, labels[rows], order[rows, turn])

            return [partial(loss, turn=turn) for turn in range(order.shape[1])]

        return self._walks().climb(predictor, inputs, labels, losses, rng=rng)

    def _walks(self) -> AutoPgd:
        return AutoPgd(norm=self.norm, epsilon=self.epsilon, steps=self.steps, rho=self.rho)


def targeted_dlr(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"], targets: Int64[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return the targeted difference of logits ratio (Croce and Hein 2020, equation 6), larger nearer to the target."""
    gap = logits.gather(1, targets[:, None])[:, 0] - logits.gather(1, labels[:, None])[:, 0]
    if logits.shape[1] < 4:
        return gap
    top = logits.topk(4, dim=1).values
    return gap / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)
