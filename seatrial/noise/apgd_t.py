"""APGD-T: Auto-PGD on the difference of logits ratio, towards one class after another."""

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
from seatrial.noise.apgd import linf_start, require_linf, walk
from seatrial.noise.ball import LinfBall, budget
from seatrial.noise.targets import target_classes


@final
@dataclass(frozen=True, kw_only=True)
class ApgdT(Attack):
    """Targeted Auto-PGD on the DLR loss (Croce and Hein 2020, arXiv 2003.01690, equation 6), AutoAttack's second stage.

    The targets are the `targets` classes of largest clean logits beside the label, tried in that order. Networks of
    fewer than four classes have no DLR; they are attacked on the difference of the two logits. `epsilon` is a number
    or text such as "8/255". Raises BadInput for options out of range and for other norms than L-inf.
    Departures: a sample leaves at its first misclassified point, whichever class that is.
    """

    epsilon: float | str
    norm: str = "linf"
    steps: int = 100
    targets: int = 9
    rho: float = 0.75

    def __post_init__(self) -> None:
        budget(self.norm, self.epsilon)
        require_linf(self.norm, "apgd_t")
        if self.steps < 1 or self.targets < 1 or not 0 < self.rho < 1:
            raise BadInput(
                f"{self.steps} steps, {self.targets} targets, rho {self.rho}",
                "1 or more steps and targets, 0 < rho < 1",
                "take 100, 9 and 0.75",
            )

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
        """Return per sample a misclassified point, else that of its last walk; `rng[i]` draws the starts of i."""
        epsilon = budget(self.norm, self.epsilon)
        ball = LinfBall.around(inputs, epsilon)
        with torch.no_grad():
            clean = predictor(inputs)
        order = target_classes(clean, labels, self.targets)
        found, zeros = inputs.detach().clone(), np.full(len(inputs), np.nan)
        queries = np.ones(len(inputs), dtype=np.int64)
        standing = (clean.argmax(1) == labels).nonzero()[:, 0]
        for turn in range(order.shape[1]):
            if not len(standing):
                break
            chosen, own, target = ball.select(standing), labels[standing], order[standing, turn]
            start = linf_start(inputs[standing], chosen, epsilon, [rng[i] for i in standing.tolist()])
            walked = walk(
                predictor,
                start,
                chosen,
                own,
                lambda logits, rows, own=own, target=target: targeted_dlr(logits, own[rows], target[rows]),
                norm=self.norm,
                epsilon=epsilon,
                steps=self.steps,
                rho=self.rho,
            )
            found[standing] = walked.point
            if turn == 0:
                zeros[standing.numpy()] = walked.zero_gradient
            queries[standing.numpy()] += walked.queries
            standing = standing[~walked.fallen]
        return Perturbation(found, zeros, queries)


def targeted_dlr(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"], targets: Int64[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return the targeted difference of logits ratio (Croce and Hein 2020, equation 6), larger nearer to the target."""
    gap = logits.gather(1, targets[:, None])[:, 0] - logits.gather(1, labels[:, None])[:, 0]
    if logits.shape[1] < 4:
        return gap
    top = logits.topk(4, dim=1).values
    return gap / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)
