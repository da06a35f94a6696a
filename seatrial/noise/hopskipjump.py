"""HopSkipJump: along the boundary between classes, which needs the predicted labels only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from seatrial.core.noise import Attack, Perturbation
from seatrial.core.predictor import Gift, Predictor
from seatrial.errors import BadInput, NotApplicable
from seatrial.noise.ball import Ball, ball_around, budget

_HALVINGS = 24
"""The finest binary search: what float32 can tell apart in [0, 1]."""

_NOISES, _TRIALS = 20, 109
"""Starts that are tried: noise first, then flat colors and the negative, then noise again."""

_FEWEST = 10
"""Draws without which a gradient is not worth estimating."""

_COLORS = np.array([[code >> channel & 1 for channel in range(3)] for code in range(8)], dtype=np.float32)


@final
@dataclass(frozen=True, kw_only=True)
class HopSkipJump(Attack):
    """HopSkipJump in L2 or L-inf (Chen et al. 2020, arXiv 1904.02144, algorithm 2), untargeted, geometric steps.

    `epsilon` is a number or text such as "2/255". `queries` bounds the forward passes of a sample, the clean one and
    the search for a start included. `draws` is the number of random directions of the first gradient estimate, which
    grows with the square root of the iteration up to `most_draws`; `gamma` sets the tolerance of the binary search,
    gamma / d^1.5 in L2 and gamma / d^2 in L-inf for d entries. Raises BadInput for options out of range.
    Departures: the paper minimizes a distance, here epsilon is given, so a sample leaves the batch at the first
    misclassified point within it. Where none is found, the closest misclassified point is projected onto the ball,
    which a predictor may well get right. A sample that is misclassified already costs one query and comes back
    unchanged; so does, at the price of the search, one for which no start is found. Starts are uniform noise, as in
    the authors' code, but after 20 in vain also the eight corners of the color cube and the negative of the picture.
    Tolerances below what float32 tells apart are not searched for, and the last estimate makes do with the queries
    left.
    """

    epsilon: float | str
    norm: str = "l2"
    queries: int = 5000
    draws: int = 100
    most_draws: int = 10_000
    gamma: float = 1.0

    def __post_init__(self) -> None:
        budget(self.norm, self.epsilon)
        if self.norm == "l1":
            raise BadInput("hopskipjump in l1", "linf or l2, for which it is defined", "ask for square in l1")
        if self.queries < 2:
            raise BadInput(f"{self.queries} queries", "at least 2", "take 1000 for a quick look, 5000 for a full one")
        if not _FEWEST <= self.draws <= self.most_draws:
            raise BadInput(
                f"{self.draws} draws, at most {self.most_draws}", f"{_FEWEST} or more", "the authors take 100 and 10000"
            )
        if not 0 < self.gamma < math.inf:
            raise BadInput(f"gamma {self.gamma}", "a number above 0", "the authors take 1")

    @property
    def needs(self) -> frozenset[Gift]:
        """Labels."""
        return frozenset({"labels"})

    @torch.no_grad()
    def perturb(
        self,
        predictor: Predictor,
        inputs: Float[Tensor, "batch 3 height width"],
        labels: Int64[Tensor, " batch"],
        *,
        rng: Sequence[np.random.Generator],
    ) -> Perturbation:
        """Return per sample the first misclassified point in the ball, else the closest one, projected onto it."""
        if "labels" not in predictor.gives:
            raise NotApplicable("the predictor gives no labels, which HopSkipJump walks by")
        inputs = inputs.detach()
        ball = ball_around(self.norm, inputs, budget(self.norm, self.epsilon, inputs.shape[1:]))
        judge = _Judge(predictor, labels, self.queries)
        everyone = torch.arange(len(inputs), device=inputs.device)
        right = everyone[~judge(inputs, everyone)] if len(inputs) else everyone
        walk = _Walk(self, judge, inputs, ball, rng)
        walking = walk.begin(right)
        iteration = 0
        while len(walking):
            iteration += 1
            walking = walk.advance(walking, iteration)
        return Perturbation(walk.found(), np.full(len(inputs), np.nan), judge.spent)


class _Judge:
    """Tells which points are misclassified, and counts."""

    def __init__(self, predictor: Predictor, labels: Tensor, queries: int) -> None:
        self._predictor, self._labels, self._queries = predictor, labels, queries
        self.spent = np.zeros(len(labels), dtype=np.int64)

    def __call__(self, points: Tensor, rows: Int64[Tensor, " points"]) -> Bool[Tensor, " points"]:
        """Return whether each of `points` is misclassified; `rows` says whose it is."""
        np.add.at(self.spent, rows.cpu().numpy(), 1)
        answer = self._predictor(points)
        predicted = answer.argmax(1) if answer.ndim == 2 else answer
        return predicted.to(self._labels.device) != self._labels[rows]

    def left(self, rows: Tensor) -> np.ndarray:
        """Return the queries that `rows` may still spend."""
        return self._queries - self.spent[rows.cpu().numpy()]


class _Walk:
    """The points of all samples: where each stands on the boundary, and the closest it has been."""

    def __init__(
        self, options: HopSkipJump, judge: _Judge, origin: Tensor, ball: Ball, rng: Sequence[np.random.Generator]
    ) -> None:
        self._options, self._judge, self._origin, self._ball, self._rng = options, judge, origin, ball, rng
        self._flat = options.norm == "linf"
        entries = max(1, math.prod(origin.shape[1:]))
        self._theta = options.gamma / entries ** (2.0 if self._flat else 1.5)
        self._reach = (entries if self._flat else math.sqrt(entries)) * self._theta
        self._halvings = min(_HALVINGS, max(1, math.ceil(math.log2(1 / self._theta))))
        self._point, self._best = origin.clone(), origin.clone()
        self._nearest = torch.full((len(origin),), torch.inf, device=origin.device)

    def found(self) -> Tensor:
        """Return each sample's closest misclassified point, projected onto its ball; its own picture without one."""
        return self._ball.project(self._best)

    def begin(self, rows: Tensor) -> Tensor:
        """Find a misclassified start for each of `rows`, go to the boundary, and return who walks on from there."""
        searching = rows
        for trial in range(_TRIALS):
            searching = searching[self._mask(self._judge.left(searching) > 0)]
            if not len(searching):
                break
            start = self._start(searching, trial)
            fooled = self._judge(start, searching)
            self._accept(searching[fooled], start[fooled])
            searching = searching[~fooled]
        started = rows[self._nearest[rows].isfinite()]
        return self._settle(started)

    def advance(self, rows: Tensor, iteration: int) -> Tensor:
        """Estimate the gradient at the boundary, take a step, return to the boundary; return who walks on."""
        distance = self._distance(self._point[rows], rows)
        spread = torch.full_like(distance, 0.1) if iteration == 1 else self._reach * distance
        wanted = min(int(self._options.draws * math.sqrt(iteration)), self._options.most_draws)
        draws = np.minimum(wanted, self._judge.left(rows) - self._halvings - 1)
        direction = self._estimate(rows, draws, spread)
        if self._flat:
            direction = direction.sign()
        return self._settle(self._step(rows, direction, distance / math.sqrt(iteration)))

    def _start(self, rows: Tensor, trial: int) -> Tensor:
        shape = self._origin.shape[1:]
        flat = trial - _NOISES
        if flat == len(_COLORS):
            return 1 - self._origin[rows]
        if not 0 <= flat < len(_COLORS):
            drawn = np.stack([self._rng[i].random(shape, dtype=np.float32) for i in rows.tolist()])
            return torch.from_numpy(drawn).to(self._origin.device)
        color = torch.from_numpy(_COLORS[flat]).to(self._origin.device)
        return color[None, :, None, None].expand(len(rows), *shape).contiguous()

    def _estimate(self, rows: Tensor, draws: np.ndarray, spread: Tensor) -> Tensor:
        """Return the unit direction of equation 16: random ones weighed by their verdict, less the mean verdict."""
        shape, device = self._origin.shape[1:], self._origin.device
        weighed, plain = torch.zeros_like(self._point[rows]), torch.zeros_like(self._point[rows])
        balance = torch.zeros(len(rows), device=device)
        # As many rows a pass as the batch had: one draw for each of many samples, many draws for few.
        chunk, done = max(1, len(self._origin) // len(rows)), 0
        while done < draws.max():
            count = np.clip(draws - done, 0, chunk)
            owner = torch.from_numpy(np.repeat(np.arange(len(rows)), count)).to(device)
            drawn = [self._noise(i, (n, *shape)) for i, n in zip(rows.tolist(), count.tolist(), strict=True) if n]
            noise = torch.from_numpy(np.concatenate(drawn)).to(device)
            noise /= torch.linalg.vector_norm(noise, dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
            scale, point = spread[owner][:, None, None, None], self._point[rows][owner]
            moved = (point + scale * noise).clamp_(0, 1)
            # The direction counts as the box left it.
            noise = (moved - point) / scale
            verdict = torch.where(self._judge(moved, rows[owner]), 1.0, -1.0)
            weighed.index_add_(0, owner, noise * verdict[:, None, None, None])
            plain.index_add_(0, owner, noise)
            balance.index_add_(0, owner, verdict)
            done += chunk
        mean = balance / torch.from_numpy(draws).to(device)
        # Where all verdicts are alike, subtracting their mean would leave nothing.
        mean = torch.where(mean.abs() == 1, 0.0, mean)
        gradient = weighed - mean[:, None, None, None] * plain
        return gradient / torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)

    def _noise(self, row: int, shape: tuple[int, ...]) -> np.ndarray:
        if self._flat:
            return 2 * self._rng[row].random(shape, dtype=np.float32) - 1
        return self._rng[row].standard_normal(shape, dtype=np.float32)

    def _step(self, rows: Tensor, direction: Tensor, length: Tensor) -> Tensor:
        """Move each point along its direction, by the largest of `length`, its half, ..., that stays misclassified.

        Returns the rows that have moved. A row keeps the queries of a binary search back.
        """
        trying = torch.arange(len(rows), device=rows.device)
        moved = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for _ in range(_HALVINGS):
            trying = trying[self._mask(self._judge.left(rows[trying]) > self._halvings)]
            if not len(trying):
                break
            ahead = self._point[rows[trying]] + length[trying][:, None, None, None] * direction[trying]
            ahead.clamp_(0, 1)
            fooled = self._judge(ahead, rows[trying])
            self._accept(rows[trying[fooled]], ahead[fooled])
            moved[trying[fooled]] = True
            trying, length = trying[~fooled], length / 2
        return rows[moved]

    def _settle(self, rows: Tensor) -> Tensor:
        """Search the way from each original to its point for the boundary; return who can and must walk on."""
        origin, far = self._origin[rows], self._point[rows]
        low = torch.zeros(len(rows), device=rows.device)
        high = self._distance(far, rows) if self._flat else torch.ones_like(low)
        searching = self._mask(self._judge.left(rows) >= self._halvings)
        for _ in range(self._halvings if bool(searching.any()) else 0):
            middle = (low + high) / 2
            share = middle[:, None, None, None]
            point = (
                torch.clamp(far, (origin - share), (origin + share)) if self._flat else torch.lerp(origin, far, share)
            ).clamp_(0, 1)
            fooled = torch.zeros_like(searching)
            fooled[searching] = self._judge(point[searching], rows[searching])
            self._accept(rows[fooled], point[fooled])
            low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
        within = (self._ball.select(rows).project(self._best[rows]) == self._best[rows]).flatten(1).all(1)
        enough = self._mask(self._judge.left(rows) > self._halvings + _FEWEST)
        return rows[~within & searching & enough]

    def _accept(self, rows: Tensor, points: Tensor) -> None:
        """Stand at `points`, which are misclassified, and remember those that are closer than any before."""
        self._point[rows] = points
        distance = self._distance(points, rows)
        closer = distance < self._nearest[rows]
        self._best[rows[closer]], self._nearest[rows[closer]] = points[closer], distance[closer]

    def _distance(self, points: Tensor, rows: Tensor) -> Tensor:
        order = torch.inf if self._flat else 2
        return torch.linalg.vector_norm(points - self._origin[rows], ord=order, dim=(1, 2, 3))

    def _mask(self, values: np.ndarray) -> Bool[Tensor, " rows"]:
        return torch.from_numpy(values).to(self._origin.device)
