"""A model of latency: what each kind of operator costs in each precision, and what a change between two costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import spearmanr

from seatrial.quant.groups import Grouping

Choice = Mapping[str, str]
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_EDGE_FACTORS = (1.0, 10.0, 100.0, 1e4)
"""How much more a change between two precisions must show in the data than the operators themselves; the last leaves
it out."""


@dataclass(frozen=True)
class Sample:
    """One measured choice: its time over the reference's, and the standard error of that."""

    choice: Choice
    ratio: float
    error: float


@dataclass(frozen=True)
class Additivity:
    """How well a model foretold choices that it had not seen: rank correlation, mean relative error, and the mean
    relative difference of repeated measurements (fractions); `pairs` are (foretold, measured) ratios."""

    spearman: float
    mape: float
    repeat_spread: float
    pairs: tuple[tuple[float, float], ...]

    @property
    def trusted(self) -> bool:
        """The gate: rank correlation of at least 0.9, and an error of at most 10 % beyond the spread of repeats."""
        return self.spearman >= 0.9 and self.mape <= 0.1 + self.repeat_spread


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """ratio = constant + what each group costs in its precision + what each edge between two precisions costs.

    Groups with equal shapes share a cost, edges with equal shapes too: a change from one precision to another is
    counted by direction. Fitted by ridge regression on measured choices; its two strengths (costs, edges) are those
    with the least leave-one-out error.

    Source: OHQ, Huang et al. 2023, the latency table of OQA; edge terms and the fit are ours, because costs of single
    operators do not add up where precisions change often.
    """

    grouping: Grouping
    precisions: tuple[str, ...]
    constant: float
    weights: np.ndarray
    loo_error: float
    """Root mean squared leave-one-out error, as a ratio."""
    columns: _Columns = field(repr=False)

    @staticmethod
    def fit(grouping: Grouping, precisions: Sequence[str], samples: Sequence[Sample]) -> LatencyModel:
        """Fit the model to at least two samples; the first precision is the one that costs are differences to."""
        columns = _Columns(grouping, tuple(precisions))
        x = np.stack([columns.row(sample.choice) for sample in samples])
        y = np.asarray([sample.ratio for sample in samples])
        errors = np.asarray([max(sample.error, 0.003) for sample in samples])
        by_sample = np.minimum(np.median(errors) / errors, 3.0) ** 2
        best: tuple[float, float, np.ndarray] | None = None
        for ridge in _RIDGES:
            for factor in _EDGE_FACTORS:
                penalty = np.where(columns.is_edge, ridge * factor, ridge)
                constant, weights, loo = _ridge(x, y, by_sample, penalty)
                if best is None or loo < best[0]:
                    best = loo, constant, weights
        assert best is not None
        return LatencyModel(grouping, tuple(precisions), best[1], best[2], best[0], columns)

    def predict(self, choice: Choice) -> float:
        """Return the ratio that is expected of a choice."""
        return self.constant + float(self.columns.row(choice) @ self.weights)

    def group_cost(self, group: str, precision: str) -> float:
        """Return what a group costs in a precision beyond what it costs in the first, as a ratio to the reference."""
        index = self.columns.group_column(self.columns.shapes[group], precision)
        return 0.0 if index is None else float(self.weights[index])

    def edge_costs(self) -> list[tuple[str, str, dict[tuple[str, str], float]]]:
        """Return (producer, reader, cost by pair of precisions) of every edge."""
        return [
            (edge.producer, edge.reader, {pair: float(self.weights[at]) for pair, at in self.columns.edge(edge.shapes)})
            for edge in self.grouping.neighbors
        ]


class _Columns:
    """Which feature stands in which column."""

    def __init__(self, grouping: Grouping, precisions: tuple[str, ...]) -> None:
        self.grouping, self.precisions = grouping, precisions
        self.shapes = {group.name: group.shapes for group in grouping.groups}
        kinds = list(dict.fromkeys(self.shapes.values()))
        edges = list(dict.fromkeys(edge.shapes for edge in grouping.neighbors))
        self.pairs = [(one, other) for one in precisions for other in precisions if one != other]
        self._kinds = {kind: index for index, kind in enumerate(kinds)}
        self._edges = {kind: index for index, kind in enumerate(edges)}
        self._start = len(kinds) * (len(precisions) - 1)
        self.count = self._start + len(edges) * len(self.pairs)
        self.is_edge = np.arange(self.count) >= self._start

    def group_column(self, shapes: tuple[str, ...], precision: str) -> int | None:
        at = self.precisions.index(precision)
        return None if at == 0 else self._kinds[shapes] * (len(self.precisions) - 1) + at - 1

    def edge(self, shapes: tuple[str, ...]) -> list[tuple[tuple[str, str], int]]:
        first = self._start + self._edges[shapes] * len(self.pairs)
        return [(pair, first + index) for index, pair in enumerate(self.pairs)]

    def row(self, choice: Choice) -> np.ndarray:
        row = np.zeros(self.count)
        for name, shapes in self.shapes.items():
            index = self.group_column(shapes, choice[name])
            if index is not None:
                row[index] += 1
        for neighbors in self.grouping.neighbors:
            pair = choice[neighbors.producer], choice[neighbors.reader]
            if pair[0] != pair[1]:
                row[dict(self.edge(neighbors.shapes))[pair]] += 1
        return row


def _ridge(x: np.ndarray, y: np.ndarray, by_sample: np.ndarray, penalty: np.ndarray) -> tuple[float, np.ndarray, float]:
    """Return constant, weights and leave-one-out error of a weighted ridge regression whose constant is free."""
    root = np.sqrt(by_sample)[:, None]
    scale = np.maximum(
        np.abs(x).max(0), 1.0
    )  # a cost for all groups of one kind is as likely as one for a single group
    design = np.concatenate([np.ones((len(x), 1)), x / scale], 1) * root
    inner = design.T @ design + np.diag(np.concatenate([[1e-9], penalty]))
    solved = np.linalg.solve(inner, design.T)
    weights = solved @ (y * root[:, 0])
    leverage = np.clip(np.einsum("ij,ji->i", design, solved), 0.0, 0.999)
    missed = (y * root[:, 0] - design @ weights) / (1 - leverage)
    loo = float(np.sqrt(np.mean(missed**2) / np.mean(by_sample)))
    return float(weights[0]), weights[1:] / scale, loo


def additivity(foretold: Sequence[float], measured: Sequence[float], repeat_spread: float) -> Additivity:
    """Return how a model's predictions of fresh choices compare with their measurements."""
    told, seen = np.asarray(foretold), np.asarray(measured)
    rank = (
        float(np.asarray(spearmanr(told, seen))[0]) if len(told) > 2 and np.ptp(told) > 0 and np.ptp(seen) > 0 else 0.0
    )
    error = float(np.mean(np.abs(told - seen) / seen))
    return Additivity(rank, error, repeat_spread, tuple(zip(map(float, told), map(float, seen), strict=True)))
