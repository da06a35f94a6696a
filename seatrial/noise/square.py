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
from seatrial.noise.ball import LinfBall, budget
from seatrial.noise.margin import margin

_HALVINGS = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])
"""Iterations, of 10,000, after which the share of pixels that a square covers is halved (the authors' code)."""


@final
@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Square attack in L-inf on the margin loss (Andriushchenko et al. 2020, arXiv 1912.00049, algorithms 1 and 2).

    `epsilon` is a number or text such as "2/255". `queries` bounds the forward passes of a sample, the clean one
    and the stripes of the start included; the schedule of the square's size is stretched to it, as AutoAttack does.
    `share` is the share of pixels that the first squares cover. Raises BadInput for options out of range.
    Departures: a sample leaves the batch when its margin is below 0 (a tie is not a success); one that is
    misclassified already costs one query and comes back unchanged. As in the authors' code and unlike AutoAttack,
    each sample has a square of its own and a square that would change nothing is drawn again; the second draw is
    uniform over the other signs. A square may touch the last row and column.
    """

    epsilon: float | str
    norm: str = "linf"
    queries: int = 5000
    share: float = 0.8

    def __post_init__(self) -> None:
        budget(self.norm, self.epsilon)
        if self.norm != "linf":
            raise BadInput(f"square in {self.norm}", "linf", "ask for pgd or mim there")
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
            raise NotApplicable("the predictor gives labels only, and the Square attack compares scores")
        inputs = inputs.detach()
        ball = LinfBall.around(inputs, budget(self.norm, self.epsilon))
        found, spent = inputs.clone(), np.ones(len(inputs), dtype=np.int64)
        standing = (margin(predictor(inputs), labels) >= 0).nonzero()[:, 0]
        if len(standing):
            chosen = [rng[i] for i in standing.tolist()]
            search = _Search(ball.select(standing), labels[standing], chosen, self.queries - 2, self.share)
            best, used = search.run(predictor)
            found[standing] = best
            spent[standing.cpu().numpy()] += used
        return Perturbation(found, np.full(len(inputs), np.nan), spent)


class _Search:
    """The random search of the samples that still stand.

    They occupy the first rows of every array: a sample that falls is replaced by the last one standing, so that the
    rest of the batch needs no copy and a query costs little beside its forward pass.
    """

    def __init__(
        self, ball: LinfBall, labels: Tensor, rng: Sequence[np.random.Generator], proposals: int, share: float
    ) -> None:
        count, channels, height, width = ball.lower.shape
        self._shape = (channels, height, width)
        self._lower, self._upper = ball.lower.flatten(2), ball.upper.flatten(2)
        self._labels = labels.clone()
        self._origin = torch.arange(count, device=labels.device)
        self._bits = 2 ** torch.arange(channels, device=labels.device)
        progress = np.arange(proposals) * 10_000 // max(proposals, 1)
        area = share * height * width / 2.0 ** np.searchsorted(_HALVINGS, progress, side="left")
        self._sides = np.clip(np.rint(np.sqrt(area)).astype(np.int64), 1, min(height, width))
        # All draws are made before the first query, so a sample's stream never depends on when others fall.
        stripes = np.empty((count, channels, width), dtype=np.int64)
        draws = np.empty((count, proposals, 3), dtype=np.int32)
        for i, generator in enumerate(rng):
            stripes[i] = generator.integers(0, 2, (channels, width))
            top = generator.integers(0, height - self._sides + 1)
            draws[i, :, 0] = top * width + generator.integers(0, width - self._sides + 1)
            draws[i, :, 1] = generator.integers(0, 2**channels, proposals)
            draws[i, :, 2] = generator.integers(1, 2**channels, proposals)
        self._draws = torch.from_numpy(draws).to(labels.device)
        up = torch.from_numpy(stripes).to(labels.device).bool()[:, :, None, :].expand(-1, -1, height, -1).flatten(2)
        self._best = torch.where(up, self._upper, self._lower)

    def run(self, predictor: Predictor) -> tuple[Float[Tensor, "batch 3 height width"], Int64[np.ndarray, " batch"]]:
        """Return the best points, in the order given, and the queries that each took."""
        found = torch.empty_like(self._best)
        used = np.full(len(found), len(self._sides) + 1, dtype=np.int64)
        least = margin(self._forward(predictor), self._labels)
        for query, side in enumerate(self._sides.tolist(), start=1):
            least = self._retire(least, query, found, used)
            if not len(least):
                break
            pixels, before = self._propose(query - 1, side)
            now = margin(self._forward(predictor), self._labels)
            rejected = ~(now < least)  # written so that NaN is rejected
            worse = rejected.nonzero()[:, 0]
            self._best[worse] = self._best[worse].scatter(2, pixels[worse], before[worse])
            least = torch.where(rejected, least, now)
        found[self._origin] = self._best
        return found.unflatten(2, self._shape[1:]), used

    def _forward(self, predictor: Predictor) -> Tensor:
        return predictor(self._best.unflatten(2, self._shape[1:]))

    def _propose(self, step: int, side: int) -> tuple[Tensor, Tensor]:
        """Write one square into every sample; return where (flat indices) and what stood there."""
        channels, _, width = self._shape
        corner, code, other = self._draws[:, step].long().unbind(1)
        reach = torch.arange(side, device=corner.device)
        square = (reach[:, None] * width + reach).flatten()
        pixels = (corner[:, None] + square)[:, None].expand(-1, channels, -1)
        low, high = self._lower.gather(2, pixels), self._upper.gather(2, pixels)
        before = self._best.gather(2, pixels)
        square_now = torch.where(self._raised(code), high, low)
        idle = (square_now == before).flatten(1).all(1)
        code = torch.where(idle, (code + other) % 2**channels, code)
        self._best.scatter_(2, pixels, torch.where(self._raised(code), high, low))
        return pixels, before

    def _raised(self, code: Tensor) -> Tensor:
        return (code[:, None] & self._bits != 0)[:, :, None]

    def _retire(self, least: Tensor, query: int, found: Tensor, used: np.ndarray) -> Tensor:
        """Take the samples that have fallen out of the arrays and return the margins of the others."""
        fallen = least < 0
        if not bool(fallen.any()):
            return least
        gone = self._origin[fallen]
        found[gone] = self._best[fallen]
        used[gone.cpu().numpy()] = query
        left = int((~fallen).sum())
        holes = fallen[:left].nonzero()[:, 0]
        movers = (~fallen[left:]).nonzero()[:, 0] + left
        kept = [self._best, self._lower, self._upper, self._labels, self._origin, self._draws, least]
        for array in kept:
            array[holes] = array[movers]
        kept = [array[:left] for array in kept]
        self._best, self._lower, self._upper, self._labels, self._origin, self._draws, least = kept
        return least
