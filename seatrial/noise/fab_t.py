"""FAB-T: to the nearest point of a linearized decision boundary, one class after another."""

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
from seatrial.noise.apgd import require_linf
from seatrial.noise.ball import LinfBall, budget
from seatrial.noise.gradient import objective_gradient, zero_share
from seatrial.noise.hyperplane import nearest_on_plane
from seatrial.noise.targets import target_classes

_MOST_OF_INPUT, _OVERSHOOT, _BACK = 0.1, 1.05, 0.9


@final
@dataclass(frozen=True, kw_only=True)
class FabT(Attack):
    """Targeted Fast Adaptive Boundary attack in L-inf (Croce and Hein 2020, arXiv 1907.02044, algorithm 1).

    `targets` classes of largest clean logits are aimed at in turn, `steps` steps each, with the authors' constants
    (alpha_max 0.1, eta 1.05, beta 0.9). `epsilon` is a number or text such as "8/255". Raises BadInput for options out
    of range and for other norms than L-inf.
    Departures: a sample leaves at the first misclassified point within epsilon; a farther one is pulled back as in the
    paper. A point is asked once for both its class and its gradient. Without success the input comes back.
    """

    epsilon: float | str
    norm: str = "linf"
    steps: int = 100
    targets: int = 9

    def __post_init__(self) -> None:
        budget(self.norm, self.epsilon)
        require_linf(self.norm, "fab_t")
        if self.steps < 1 or self.targets < 1:
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
        ball = LinfBall.around(inputs, budget(self.norm, self.epsilon))
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
            search = _Search(inputs[standing], ball.select(standing), labels[standing], order[standing, turn])
            point, fallen, spent, zero = search.run(predictor, self.steps)
            if turn == 0:
                zeros[standing.numpy()] = zero
            found[standing[fallen]] = point[fallen]
            queries[standing.numpy()] += spent
            standing = standing[~fallen]
        return Perturbation(found, zeros, queries)


@final
class _Search:
    """The steps towards one target class each."""

    def __init__(self, origin: Tensor, ball: LinfBall, labels: Tensor, targets: Tensor) -> None:
        self._origin, self._ball, self._labels, self._targets = origin, ball, labels, targets

    def run(self, predictor: Predictor, steps: int) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
        count = len(self._origin)
        found, fallen = self._origin.clone(), torch.zeros(count, dtype=torch.bool)
        queries, zeros = np.zeros(count, dtype=np.int64), np.full(count, np.nan)
        rows, point = torch.arange(count), self._origin
        for step in range(steps + 1):
            gradient, logits, gap = self._ask(predictor, point, rows)
            queries[rows.numpy()] += 1
            if step == 0:
                zeros = zero_share(gradient)
            wrong = logits.argmax(1) != self._labels[rows]
            if bool(wrong.any()):
                ball = self._ball.select(rows)
                near = wrong & ((point >= ball.lower) & (point <= ball.upper)).flatten(1).all(1)
                found[rows[near]], fallen[rows[near]] = point[near], True
                keep = ~near
                rows, point, gradient, gap, far = rows[keep], point[keep], gradient[keep], gap[keep], wrong[keep]
                if bool(far.any()):
                    point = point.clone()
                    point[far] = self._origin[rows[far]] * (1 - _BACK) + point[far] * _BACK
                    gradient, gap = gradient.clone(), gap.clone()
                    gradient[far], _, gap[far] = self._ask(predictor, point[far], rows[far])
                    queries[rows[far].numpy()] += 1
            if not len(rows) or step == steps:
                break
            point = self._step(point, self._origin[rows], gradient, gap)
        return found, fallen, queries, zeros

    def _ask(self, predictor: Predictor, point: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, target = self._labels[rows][:, None], self._targets[rows][:, None]
        return objective_gradient(predictor, point, lambda z: (z.gather(1, target) - z.gather(1, own))[:, 0])

    def _step(self, point: Tensor, origin: Tensor, gradient: Tensor, gap: Tensor) -> Tensor:
        """Return the mean of the nearest points of the plane to the walk and to the origin, a little beyond it."""
        count = len(point)
        normal, here, start = gradient.flatten(1), point.flatten(1), origin.flatten(1)
        offset = (normal * here).sum(1) - gap
        both = nearest_on_plane(torch.cat([here, start]), torch.cat([normal, normal]), torch.cat([offset, offset]))
        reach = both.abs().amax(1).clamp(min=1e-8)
        share = (reach[:count] / (reach[:count] + reach[count:])).clamp(0, _MOST_OF_INPUT)[:, None]
        moved = (here + _OVERSHOOT * both[:count]) * (1 - share) + (start + _OVERSHOOT * both[count:]) * share
        return moved.clamp(0, 1).view_as(point)
