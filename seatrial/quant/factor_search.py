"""Which factor of a scale has the least error: of one scale, or of many that do not meet, all at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from seatrial.errors import BadInput

_COARSE = 16
"""Factors of the first look."""


@dataclass(frozen=True)
class FactorSearch:
    """Factors from `low` to `high` in `steps` equal steps; from coarse to fine, or with `full` all of them.

    Source: Yuan et al. 2022 (PTQ4ViT), section 3.3 and the authors' code, which tries all: 0.01 to 1.2 in 100 steps.
    """

    low: float = 0.01
    high: float = 1.2
    steps: int = 100
    full: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high or self.steps < 1:
            came = f"factors from {self.low} to {self.high} in {self.steps} steps"
            raise BadInput(came, "0 < low < high and at least one step", "0.01 to 1.2 in 100 steps are the authors'")

    def better(
        self,
        error: Callable[[Float[Tensor, " scales"]], Float[Tensor, " scales"]],
        present: Float[Tensor, " scales"],
        *,
        near: bool = False,
    ) -> Float[Tensor, " scales"]:
        """Return for each scale the factor with the least error, the present one where none is better.

        `error` tells the error of a factor for each scale. First every sixth factor or so is tried, then what lies
        between around the best; with `near`, around the present one alone.
        """
        best, least, step = present.clone(), error(present), (self.high - self.low) / self.steps

        def look(tried: Tensor) -> None:
            nonlocal best, least
            found = error(tried)
            best, least = torch.where(found < least, tried, best), torch.minimum(found, least)

        stride = 1 if self.full else max(1, self.steps // _COARSE)
        if self.full or not near:
            for number in range(self.steps, -1, -stride):
                look(torch.full_like(best, self.low + number * step))
            stride //= 2
        while stride and not self.full:
            middle = best
            for way in (-stride, stride):
                look((middle + way * step).clamp(self.low, self.high))
            stride //= 2
        return best
