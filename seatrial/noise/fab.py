"""FAB: the nearest point of the nearest linearized decision boundary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from seatrial.core.noise import Attack, Perturbation
from seatrial.core.predictor import Gift, Predictor
from seatrial.errors import BadInput, NotApplicable
from seatrial.noise.apgd_walk import Walked
from seatrial.noise.ball import ball_around, budget, sample_sum
from seatrial.noise.fab_walk import boundary_walk
from seatrial.noise.in_turn import in_turn
from seatrial.noise.sphere import on_sphere


@final
@dataclass(frozen=True, kw_only=True)
class Fab(Attack):
    """Fast Adaptive Boundary attack (Croce and Hein 2020, arXiv 1907.02044, algorithm 1), untargeted.

    The first of `restarts` searches of `steps` steps starts from the input, the others half of epsilon away from it.
    A step takes a backward pass for each class: for many classes, take FAB-T. `epsilon` is a number or text such as
    "8/255". Raises BadInput for options out of range.
    Departures: a sample leaves at the first misclassified point within epsilon; a farther one is pulled back as in the
    paper. One that is misclassified already, and one without success, come back unchanged.
    """

    epsilon: float | str
    norm: str = "linf"
    steps: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        budget(self.norm, self.epsilon)
        if min(self.steps, self.restarts) < 1:
            raise BadInput(f"{self.steps} steps, {self.restarts} restarts", "1 or more of each", "take 100 and 5")

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
        """Return per sample a misclassified point within epsilon, else the input; `rng[i]` draws its later starts."""
        epsilon = budget(self.norm, self.epsilon, inputs.shape[1:])
        ball = ball_around(self.norm, inputs, epsilon)

        def from_start(turn: int, standing: Tensor) -> Walked:
            origin, own = inputs.detach()[standing], labels[standing]
            start = origin
            if turn:
                chosen = [rng[i] for i in standing.tolist()]
                start = on_sphere(origin, self.norm, epsilon / 2, chosen).clamp_(0, 1)

            def linearize(point: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
                return _nearest_boundary(predictor, point, own[rows], self.norm)

            return boundary_walk(
                predictor, linearize, start, origin, ball.select(standing), own, norm=self.norm, steps=self.steps
            )

        turns = [partial(from_start, turn) for turn in range(self.restarts)]
        return in_turn(predictor, inputs, labels, lambda _: turns)


def _nearest_boundary(predictor: Predictor, inputs: Tensor, labels: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Return gradient and gap of the class whose linearized boundary is nearest to each sample."""
    with torch.enable_grad():
        point = inputs.detach().requires_grad_()
        logits = predictor(point)
        if not logits.requires_grad:
            raise NotApplicable("the predictor's output is detached from its input, so there is no gradient to climb")
        own = logits.gather(1, labels[:, None])[:, 0]
        (base,) = torch.autograd.grad(own.sum(), point, retain_graph=True)
        classes = logits.shape[1]
        nearest = torch.full_like(own, torch.inf)[:, None, None, None].detach()
        gradient, gap = torch.zeros_like(base), torch.zeros_like(nearest)
        for k in range(classes):
            (slope,) = torch.autograd.grad(logits[:, k].sum(), point, retain_graph=k < classes - 1)
            slope, beyond = (slope - base).nan_to_num_(0.0), (logits[:, k] - own).detach()[:, None, None, None]
            away = beyond.abs() / (_dual(slope, norm) + 1e-12)
            closer = (away < nearest) & (labels != k)[:, None, None, None]
            nearest, gap = torch.where(closer, away, nearest), torch.where(closer, beyond, gap)
            gradient = torch.where(closer, slope, gradient)
    return gradient, gap[:, 0, 0, 0]


def _dual(gradient: Tensor, norm: str) -> Tensor:
    """Return the norm of each gradient that bounds how fast the gap changes for a change of `norm` 1."""
    if norm == "l1":
        return gradient.abs().amax((1, 2, 3), keepdim=True)
    return sample_sum(gradient.square()).sqrt() if norm == "l2" else sample_sum(gradient.abs())
