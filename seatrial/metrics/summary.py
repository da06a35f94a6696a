"""All figures of one variant, reduced from its records, each with a bootstrap interval over samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from seatrial.core.noise import NoiseSpec
from seatrial.metrics.accuracy import adversarial_robustness, top1, worst_case_robustness
from seatrial.metrics.corruption_error import (
    ALEXNET_ERROR,
    SEVERITIES,
    mean_corruption_error,
    natural_robustness,
    relative_mean_corruption_error,
)
from seatrial.metrics.joining import column, joined
from seatrial.metrics.resampling import drawn_figures, percentile_interval
from seatrial.metrics.systematic import drop, drops, systematic_robustness

_MAGNITUDES = {"linf": ("0.5/255", "2/255", "8/255"), "l2": ("0.5", "2", "8"), "l1": ("100", "400", "1600")}
_NAMES = ("small", "middle", "large")
_GRID = "decoder+resize"
_CONFIDENCE = 0.95


def summarize(
    tables: Mapping[NoiseSpec | None, pa.Table],
    *,
    chain: Sequence[tuple[NoiseSpec, pa.Table]] = (),
    rng: np.random.Generator,
    resamples: int = 1000,
    ddof: int = 1,
) -> dict[str, Any]:
    """Return the summary of one variant from its records by noise (None: clean), as JSON values.

    AR by attack and epsilon, WCAR by magnitude (per-sample intersection of the attacks of that magnitude), NR, mCE and
    relative mCE where all 75 cells are there, SR over the cells of decoder by resize, drops by system noise, the chain.
    Rates are fractions, mCE percent; figures that cannot be had are None. `intervals` holds 95 % percentile bootstrap
    intervals in which all cells are resampled together. Raises BadInput without clean records.
    """
    clean = tables[None]
    attacks = {spec: table for spec, table in tables.items() if spec is not None and spec.family == "attack"}
    natural = {
        (spec.name, int(spec.severity)): table
        for spec, table in tables.items()
        if spec is not None and spec.family == "corruption" and isinstance(spec.severity, int)
    }
    system = {spec: table for spec, table in tables.items() if spec is not None and spec.family == "system"}
    intervals: dict[str, Any] = {}
    found: dict[str, Any] = {
        "clean": top1(clean),
        **_attacked(clean, attacks, intervals, rng, resamples),
        **_corrupted(clean, natural, intervals, rng, resamples),
        **_systematic(clean, system, ddof),
    }
    last = chain[-1] if chain else None
    found["combined_drop"] = None if last is None else drop(clean, last[1])
    found["chain"] = [
        {"noise": spec.name.split("+")[-1], "option": str(spec.option).split("+")[-1]}
        | {"value": top1(table), "drop": drop(clean, table)}
        for spec, table in chain
    ]
    found["intervals"] = intervals
    return found


def magnitude(spec: NoiseSpec) -> str:
    """Return `small`, `middle` or `large` for an epsilon of RobustMQ's, else the epsilon itself."""
    stated = str(spec.severity).removesuffix("@224")
    known = _MAGNITUDES.get(str(spec.norm), ())
    return _NAMES[known.index(stated)] if stated in known else str(spec.severity)


def _attacked(
    clean: pa.Table,
    attacks: Mapping[NoiseSpec, pa.Table],
    intervals: dict[str, Any],
    rng: np.random.Generator,
    resamples: int,
) -> dict[str, Any]:
    robust: dict[str, dict[str, float | None]] = {}
    groups: dict[str, list[pa.Table]] = {}
    for spec, table in attacks.items():
        name = ":".join(part for part in (spec.name, spec.norm, spec.option) if part)
        asked = _restricted(clean, table)
        right = bool(column(asked, "correct").any())
        robust.setdefault(name, {})[str(spec.severity)] = adversarial_robustness(asked, table) if right else None
        groups.setdefault(magnitude(spec), []).append(table)
    worst: dict[str, float | None] = {}
    for name, found in groups.items():
        asked = clean
        for table in found:
            asked = _restricted(asked, table)
        right = bool(column(asked, "correct").any())
        worst[name] = worst_case_robustness(asked, found) if right else None
        if right:
            correct, standing = _flags(asked, found)
            figure = _ratio(correct & standing, correct)
            intervals.setdefault("WCAR", {})[name] = _interval(len(correct), figure, rng, resamples)
    return {"AR": robust, "WCAR": worst}


def _corrupted(
    clean: pa.Table,
    natural: Mapping[tuple[str, int], pa.Table],
    intervals: dict[str, Any],
    rng: np.random.Generator,
    resamples: int,
) -> dict[str, Any]:
    wanted = [(name, severity) for name in ALEXNET_ERROR for severity in SEVERITIES]
    if not all(cell in natural for cell in wanted):
        return {"NR": None, "mCE": None, "relative_mCE": None}
    accuracy = {cell: top1(natural[cell]) for cell in wanted}
    ids = [np.sort(column(natural[cell], "sample").astype(str)) for cell in wanted]
    if all(np.array_equal(ids[0], other) for other in ids[1:]):
        order = [np.argsort(column(natural[cell], "sample").astype(str)) for cell in wanted]
        flags = np.stack([column(natural[cell], "correct")[o] for cell, o in zip(wanted, order)]).astype(np.float64)
        weights = 1 / np.array([ALEXNET_ERROR[name] for name, _ in wanted])

        def nr(counts: np.ndarray) -> np.ndarray:
            return (counts @ flags.T).mean(1) / flags.shape[1]

        def mce(counts: np.ndarray) -> np.ndarray:
            return 100 * ((1 - counts @ flags.T / flags.shape[1]) * weights).mean(1)

        intervals["NR"] = _interval(flags.shape[1], nr, rng, resamples)
        intervals["mCE"] = _interval(flags.shape[1], mce, rng, resamples)
    return {
        "NR": natural_robustness(accuracy),
        "mCE": mean_corruption_error(accuracy),
        "relative_mCE": relative_mean_corruption_error(accuracy, top1(clean)),
    }


def _systematic(clean: pa.Table, system: Mapping[NoiseSpec, pa.Table], ddof: int) -> dict[str, Any]:
    grid = [top1(table) for spec, table in system.items() if spec.name == _GRID]
    mean, deviation = systematic_robustness(grid, ddof=ddof) if len(grid) > ddof else (None, None)
    single = {spec: table for spec, table in system.items() if "+" not in spec.name}
    return {
        "SR_mean": mean,
        "SR_std": deviation,
        "SR_ddof": ddof,
        "SR_cells": len(grid),
        "system": [
            {"noise": found.noise, "mean": found.mean, "max": found.most, "option": found.worst.option}
            for found in drops(clean, single)
        ],
    }


def _restricted(clean: pa.Table, table: pa.Table) -> pa.Table:
    """Return the clean records of the samples that the other table holds."""
    return clean.take(pa.array(joined(clean, table)[0]))


def _flags(clean: pa.Table, tables: Sequence[pa.Table]) -> tuple[np.ndarray, np.ndarray]:
    """Return, per clean sample in order of id, whether it is right when clean, and in every table."""
    first = np.argsort(column(clean, "sample").astype(str))
    standing = np.ones(len(first), dtype=bool)
    for table in tables:
        standing &= column(table, "correct")[joined(clean, table)[1]]
    return column(clean, "correct")[first].astype(bool), standing


def _ratio(above: np.ndarray, below: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    def figure(counts: np.ndarray) -> np.ndarray:
        whole = (counts @ below.astype(np.float64)).astype(np.float64)
        return np.divide(counts @ above.astype(np.float64), whole, out=np.full(len(whole), np.nan), where=whole > 0)

    return figure


def _interval(
    count: int, figure: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator, resamples: int
) -> dict[str, float]:
    drawn = drawn_figures(count, figure, rng=rng, resamples=resamples)
    found = percentile_interval(drawn, _CONFIDENCE)
    return {"low": found.low, "high": found.high}
