"""An attack whose result could be saved as a picture of 8 bits."""

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
from seatrial.errors import NotApplicable

_LEVELS = 255
_SLACK = 1e-6


@final
@dataclass(frozen=True, kw_only=True)
class Rounded(Attack):
    """Another attack, its result rounded to multiples of 1/255 towards the picture it started from.

    No entry moves away from its original, so every budget is kept; an L-inf budget below 1/255 leaves nothing. In
    L-inf an entry may move by 1e-6, since the walls of the ball lie a rounding inside it: 2/255 is two levels. Raises
    NotApplicable for pictures that are no multiples of 1/255 themselves, which have no neighbor to round to. Source:
    examples that lose their effect as 8-bit files, Carlini and Wagner 2017, arXiv 1608.04644, on discretization.
    Departures: the paper searches on the grid for an example that keeps its effect, here one may lose it; what the
    attack notes of its search (queries, gradients) is that of the search without rounding.
    """

    attack: Attack

    @property
    def needs(self) -> frozenset[Gift]:
        """What the attack needs."""
        return self.attack.needs

    def perturb(
        self,
        predictor: Predictor,
        inputs: Float[Tensor, "batch 3 height width"],
        labels: Int64[Tensor, " batch"],
        *,
        rng: Sequence[np.random.Generator],
    ) -> Perturbation:
        """Return what the attack finds, rounded."""
        center = inputs.detach()
        if not torch.equal(_level(center.mul(_LEVELS).round()), center):
            raise NotApplicable("the pictures are not of 8 bits, so an attack's result cannot be rounded to 8 bits")
        found = self.attack.perturb(predictor, inputs, labels, rng=rng)
        slack = _SLACK if getattr(self.attack, "norm", None) == "linf" else 0.0
        return Perturbation(_towards(center, found.inputs, slack), found.zero_gradient, found.queries)


def _towards(center: Tensor, point: Tensor, slack: float) -> Tensor:
    """Return the multiple of 1/255 nearest to each entry of `point`, at most `slack` farther from `center` than it."""
    level = point.mul(_LEVELS).round()
    beyond = (_level(level).double() - center).abs() > (point.double() - center).abs() + slack
    return _level(torch.where(beyond, level - (point - center).sign(), level))


def _level(number: Tensor) -> Tensor:
    """Return the float32 value that a level of 0 to 255 has in an input."""
    return number / _LEVELS
