"""All cells of one variant resampled together: samples are drawn once, and every figure is taken of the same draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64

from seatrial.core.noise import NoiseSpec
from seatrial.metrics.joining import column, joined
from seatrial.metrics.resampling import drawn_figures

Group = tuple[NoiseSpec, ...]


@final
@dataclass(frozen=True)
class JointDraws:
    """Shares of drawn samples, fractions [draws]; NaN where no drawn sample counts.

    Columns of `sums` [draws columns] come in pairs, what counts and of what, at the place of `accuracies` and of
    `robust`.
    """

    sums: Float64[np.ndarray, "draws columns"]
    accuracies: Mapping[NoiseSpec | None, int]
    robust: Mapping[Group, int]

    def accuracy(self, spec: NoiseSpec | None) -> Float64[np.ndarray, " draws"]:
        """Return the share answered rightly under a noise (None: clean), of the samples that the clean cell holds."""
        return self._share(self.accuracies[spec])

    def standing(self, group: Group) -> Float64[np.ndarray, " draws"]:
        """Return the share right under every noise of a group, of the samples right when clean that all of it holds."""
        return self._share(self.robust[group])

    def _share(self, place: int) -> Float64[np.ndarray, " draws"]:
        above, below = self.sums[:, place], self.sums[:, place + 1]
        return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)


def joint_draws(
    tables: Mapping[NoiseSpec | None, pa.Table],
    groups: Iterable[Group],
    *,
    rng: np.random.Generator,
    resamples: int,
) -> JointDraws:
    """Return draws of the samples of the clean cell (key None), counted in every cell and for every group of noises.

    Cells are joined by sample id and may hold a part of the samples. The draws do not depend on the order of records.
    Raises BadInput where a cell shares no sample with the clean one. Source: Efron and Tibshirani 1993, section 6.2.
    """
    clean = tables[None]
    order = np.argsort(column(clean, "sample").astype(str))
    usual = column(clean, "correct")[order].astype(bool)
    columns: list[Bool[np.ndarray, " samples"]] = []
    held: dict[NoiseSpec | None, np.ndarray] = {}
    right: dict[NoiseSpec | None, np.ndarray] = {}
    accuracies: dict[NoiseSpec | None, int] = {}
    back = np.empty(len(order), dtype=np.int64)
    back[order] = np.arange(len(order))
    for spec, table in tables.items():
        if table is clean:
            held[spec], right[spec] = np.ones(len(order), dtype=bool), usual
        else:
            ours, theirs = joined(clean, table)
            held[spec], right[spec] = np.zeros((2, len(order)), dtype=bool)
            held[spec][back[ours]] = True
            right[spec][back[ours]] = column(table, "correct")[theirs]
        accuracies[spec] = len(columns)
        columns += [right[spec], held[spec]]
    robust: dict[Group, int] = {}
    for group in groups:
        robust[group] = len(columns)
        standing, asked = usual.copy(), usual.copy()
        for spec in group:
            standing &= right[spec]
            asked &= held[spec]
        columns += [standing & asked, asked]
    # Counts of samples are whole numbers far below 2^24, so float32 adds them exactly, at half the cost.
    flags = np.stack(columns, axis=1).astype(np.float32)

    def counted(counts: np.ndarray) -> np.ndarray:
        return (counts.astype(np.float32) @ flags).astype(np.float64)

    sums = drawn_figures(len(order), counted, rng=rng, resamples=resamples)
    return JointDraws(sums, accuracies, robust)
