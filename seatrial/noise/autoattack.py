"""AutoAttack: four attacks in turn, each on what the ones before left standing."""

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
from seatrial.noise.apgd_ce import ApgdCe
from seatrial.noise.apgd_t import ApgdT
from seatrial.noise.ball import budget, require_unit_box
from seatrial.noise.fab_t import FabT
from seatrial.noise.square import Square


@final
@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """AutoAttack's standard version in L-inf (Croce and Hein 2020, arXiv 2003.01690): APGD-CE, APGD-T, FAB-T, Square.

    `steps`, `targets` and `queries` are the authors'. `epsilon` is a number or text such as "8/255". Raises BadInput
    for options out of range and for other norms than L-inf.
    Departures: those of the four stages; a sample that is misclassified already comes back unchanged.
    """

    epsilon: float | str
    norm: str = "linf"
    steps: int = 100
    targets: int = 9
    queries: int = 5000

    def __post_init__(self) -> None:
        budget(self.norm, self.epsilon)
        require_linf(self.norm, "autoattack")
        if min(self.steps, self.targets) < 1 or self.queries < 2:
            raise BadInput(
                f"{self.steps} steps, {self.targets} targets, {self.queries} queries",
                "1 or more steps and targets, 2 or more queries",
                "take 100, 9 and 5000",
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
        """Return per sample the first misclassified point of any stage, else the last stage's; `rng[i]` serves all."""
        require_unit_box(inputs)
        found, zeros = inputs.detach().clone(), np.full(len(inputs), np.nan)
        queries = np.ones(len(inputs), dtype=np.int64)
        with torch.no_grad():
            standing = (predictor(inputs).argmax(1) == labels).nonzero()[:, 0]
        for number, stage in enumerate(self._stages()):
            if not len(standing):
                break
            chosen = [rng[i] for i in standing.tolist()]
            got = stage.perturb(predictor, inputs[standing], labels[standing], rng=chosen)
            if number == 0:
                zeros[standing.numpy()] = got.zero_gradient
            queries[standing.numpy()] += got.queries + 1
            with torch.no_grad():
                fallen = predictor(got.inputs).argmax(1) != labels[standing]
            found[standing] = got.inputs
            standing = standing[~fallen]
        return Perturbation(found, zeros, queries)

    def _stages(self) -> tuple[Attack, ...]:
        return (
            ApgdCe(epsilon=self.epsilon, steps=self.steps),
            ApgdT(epsilon=self.epsilon, steps=self.steps, targets=self.targets),
            FabT(epsilon=self.epsilon, steps=self.steps, targets=self.targets),
            Square(epsilon=self.epsilon, queries=self.queries),
        )
