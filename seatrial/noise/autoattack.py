"""AutoAttack: several attacks in turn, each on what the ones before left standing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from seatrial.core.noise import Attack, Perturbation
from seatrial.core.predictor import Gift, Predictor
from seatrial.errors import BadInput, unknown_name
from seatrial.noise.apgd_ce import ApgdCe
from seatrial.noise.apgd_dlr import ApgdDlr
from seatrial.noise.apgd_t import ApgdT
from seatrial.noise.ball import require_unit_box
from seatrial.noise.fab import Fab
from seatrial.noise.fab_t import FabT
from seatrial.noise.square import Square

Version = Literal["standard", "plus", "rand"]
_VERSIONS: tuple[Version, ...] = get_args(Version)
_RESTARTS, _TARGETS_L1, _DRAWS = 5, 5, 20


@final
@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """AutoAttack (Croce and Hein 2020, arXiv 2003.01690, section 6): the worst of several attacks for each sample.

    `version` "standard" is APGD-CE, APGD-T, FAB-T and Square; "plus" APGD-CE, APGD-DLR and FAB with 5 restarts each,
    Square, APGD-T and FAB-T; "rand", for predictors that answer by chance, APGD-CE and APGD-DLR over 20 draws of the
    gradient. In L1 (Croce and Hein 2021, arXiv 2103.01208) APGD-CE has 5 restarts and APGD-T 5 targets. `steps`,
    `targets` and `queries` (of Square) are the authors'. `epsilon` is a number or text such as "8/255". Raises
    BadInput for options out of range.
    Departures: those of the stages; a sample that is misclassified already comes back unchanged.
    """

    epsilon: float | str
    norm: str = "linf"
    version: Version = "standard"
    steps: int = 100
    targets: int = 9
    queries: int = 5000

    def __post_init__(self) -> None:
        if self.version not in _VERSIONS:
            raise unknown_name("version of AutoAttack", self.version, _VERSIONS)
        if min(self.steps, self.targets) < 1 or self.queries < 2:
            raise BadInput(
                f"{self.steps} steps, {self.targets} targets, {self.queries} queries",
                "1 or more steps and targets, 2 or more queries",
                "take 100, 9 and 5000",
            )
        _ = self.stages  # refuses what a stage refuses

    @property
    def needs(self) -> frozenset[Gift]:
        """Gradients and logits."""
        return frozenset({"gradients", "logits"})

    @property
    def stages(self) -> tuple[Attack, ...]:
        """The attacks, in their order."""
        epsilon, norm, steps = self.epsilon, self.norm, self.steps
        sparse, plus = norm == "l1", self.version == "plus"
        restarts = _RESTARTS if plus or sparse else 1
        draws = _DRAWS if self.version == "rand" else 1
        ce = ApgdCe(epsilon=epsilon, norm=norm, steps=steps, restarts=restarts, draws=draws)
        dlr = ApgdDlr(epsilon=epsilon, norm=norm, steps=steps, restarts=restarts, draws=draws)
        if self.version == "rand":
            return ce, dlr
        targets = min(self.targets, _TARGETS_L1) if sparse else self.targets
        towards = ApgdT(epsilon=epsilon, norm=norm, steps=steps, targets=targets)
        boundary = FabT(epsilon=epsilon, norm=norm, steps=steps, targets=self.targets)
        square = Square(epsilon=epsilon, norm=norm, queries=self.queries)
        if plus:
            return ce, dlr, Fab(epsilon=epsilon, norm=norm, steps=steps, restarts=_RESTARTS), square, towards, boundary
        return ce, towards, boundary, square

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
        for number, stage in enumerate(self.stages):
            if not len(standing):
                break
            chosen = [rng[i] for i in standing.tolist()]
            got = stage.perturb(predictor, inputs[standing], labels[standing], rng=chosen)
            at = standing.cpu().numpy()
            if number == 0:
                zeros[at] = got.zero_gradient
            queries[at] += got.queries + 1
            with torch.no_grad():
                fallen = predictor(got.inputs).argmax(1) != labels[standing]
            found[standing] = got.inputs
            standing = standing[~fallen]
        return Perturbation(found, zeros, queries)
