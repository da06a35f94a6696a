"""Square attack: random search with squares of shrinking size, which needs scores only."""

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
from seatrial.noise.ball import Ball, L1Ball, L2Ball, LinfBall, ball_around, budget
from seatrial.noise.margin import margin
from seatrial.noise.random_search import RandomSearch
from seatrial.noise.square_linf import LinfSearch
from seatrial.noise.square_pyramid import PyramidSearch


@final
@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Square attack on the margin loss (Andriushchenko et al. 2020, arXiv 1912.00049, algorithms 1 to 3).

    `epsilon` is a number or text such as "2/255". `queries` bounds the forward passes of a sample, the clean one
    and that of the start included; the schedule of the square's size is stretched to it, as AutoAttack does.
    `share` is the share of pixels that the first squares cover. Raises BadInput for options out of range.
    Departures: a sample leaves the batch when its margin is below 0 (a tie is not a success); one that is
    misclassified already costs one query and comes back unchanged. As in the authors' code and unlike AutoAttack,
    each sample has a square of its own and, in L-inf, a square that would change nothing is drawn again; the second
    draw is uniform over the other signs. A square may touch the last row and column. In L2 what a window may use is
    counted channel by channel, as in the paper and unlike AutoAttack. L1, which the paper does not have (AutoAttack
    does), is algorithm 3 with sums of absolute values for Euclidean norms and the exact projection onto ball and box.
    """

    epsilon: float | str
    norm: str = "linf"
    queries: int = 5000
    share: float = 0.8

    def __post_init__(self) -> None:
        budget(self.norm, self.epsilon)
        if self.queries < 2:
            raise BadInput(f"{self.queries} queries", "at least 2", "take 300 for a quick look, 5000 for a full one")
        if not 0 < self.share <= 1:
            raise BadInput(f"share {self.share}", "above 0 and at most 1", "AutoAttack takes 0.8")

    @property
    def needs(self) -> frozenset[Gift]:
        """Logits."""
        return frozenset({"logits"})

    @torch.no_grad()
    def perturb(
        self,
        predictor: Predictor,
        inputs: Float[Tensor, "batch 3 height width"],
        labels: Int64[Tensor, " batch"],
        *,
        rng: Sequence[np.random.Generator],
    ) -> Perturbation:
        """Return per sample the first point that is misclassified, else the one with the smallest margin."""
        if "logits" not in predictor.gives:
            raise NotApplicable(
                "the predictor gives labels only, and the Square attack compares scores; hopskipjump would work"
            )
        inputs = inputs.detach().contiguous()  # the search writes by position
        ball = ball_around(self.norm, inputs, budget(self.norm, self.epsilon, inputs.shape[1:]))
        found, spent = inputs.clone(), np.ones(len(inputs), dtype=np.int64)
        standing = (margin(predictor(inputs), labels) >= 0).nonzero()[:, 0]
        if len(standing):
            search = self._search(ball.select(standing), labels[standing], [rng[i] for i in standing.tolist()])
            best, used = search.run(predictor)
            found[standing] = best
            spent[standing.cpu().numpy()] += used
        return Perturbation(found, np.full(len(inputs), np.nan), spent)

    def _search(self, ball: Ball, labels: Tensor, rng: Sequence[np.random.Generator]) -> RandomSearch:
        # The clean query and that of the start are no proposals.
        if isinstance(ball, LinfBall):
            return LinfSearch(ball, labels, rng, self.queries - 2, self.share)
        assert isinstance(ball, L2Ball | L1Ball)
        return PyramidSearch(ball, labels, rng, self.queries - 2, self.share)
