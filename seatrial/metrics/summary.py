"""All figures of one variant, reduced from its records, each with a bootstrap interval over samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from seatrial.core.noise import STATED, NoiseSpec
from seatrial.errors import BadInput
from seatrial.metrics.accuracy import adversarial_robustness, top1, worst_case_robustness
from seatrial.metrics.corruption_error import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERROR,
    SEVERITIES,
    mean_corruption_error,
    natural_robustness,
    relative_mean_corruption_error,
)
from seatrial.metrics.intervals import paired_difference, wilson
from seatrial.metrics.joining import column, joined
from seatrial.metrics.joint_draws import Group, JointDraws, joint_draws
from seatrial.metrics.resampling import percentile_interval
from seatrial.metrics.systematic import chain_rows, drop, drops, systematic_robustness

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

    AR by attack and epsilon, WCAR by magnitude (per-sample intersection of the attacks named in `WCAR_attacks`), NR,
    mCE and relative mCE where all 75 cells are there, SR over the cells of decoder by resize, drops by system noise,
    the chain. Rates are fractions, mCE percent; figures that cannot be had are None. `intervals` holds 95 % percentile
    bootstrap intervals in which all cells are resampled together, joined by sample id. A noise that changed nothing
    comes with the clean table itself: it counts as a cell, not in the mean drop of its noise. Raises BadInput without
    clean records, and for a cell that shares no sample with them.
    Departures: where all samples agree, so that no draw differs, the bootstrap has no width and would claim certainty;
    such a share has Wilson's interval, such a combined drop the adjusted Wald interval (see `paired_difference`).
    """
    if tables.get(None) is None:
        raise BadInput("records of noises alone", "clean records under the key None", "evaluate without noise as well")
    clean = tables[None]
    attacks = {spec: table for spec, table in tables.items() if spec is not None and spec.family == "attack"}
    natural = {
        (spec.name, int(spec.severity)): spec
        for spec in tables
        if spec is not None and spec.family == "corruption" and isinstance(spec.severity, int)
    }
    system = {spec: table for spec, table in tables.items() if spec is not None and spec.family == "system"}
    last = chain[-1] if chain else None
    groups: dict[str, Group] = {}
    for spec in attacks:
        groups[magnitude(spec)] = (*groups.get(magnitude(spec), ()), spec)
    every = dict(tables) if last is None else {**tables, last[0]: last[1]}
    asked = dict.fromkeys([*((spec,) for spec in attacks), *groups.values()])
    drawn = joint_draws(every, asked, rng=rng, resamples=resamples)
    intervals: dict[str, Any] = {"clean": _share_interval(drawn.accuracy(None), top1(clean), len(clean))}
    found: dict[str, Any] = {
        "clean": top1(clean),
        **_attacked(clean, attacks, groups, drawn, intervals),
        **_corrupted(tables, natural, drawn, intervals),
        **_systematic(clean, system, ddof, drawn, intervals),
        "combined_drop": None if last is None else drop(clean, last[1]),
    }
    if last is not None:
        fallen = drawn.accuracy(None) - drawn.accuracy(last[0])
        intervals["combined_drop"] = _interval(fallen) if np.ptp(fallen) > 0 else _certain_drop(clean, last[1], rng)
    found["chain"] = chain_rows((spec, top1(table), drop(clean, table)) for spec, table in chain)
    found["intervals"] = intervals
    return found


def magnitude(spec: NoiseSpec) -> str:
    """Return `small`, `middle` or `large` for an epsilon of RobustMQ's, else the epsilon, with its norm unless L-inf.

    In L1 and L2 they are stated for 3x224x224 ("2@224"); the same number without that is another budget.
    """
    norm, epsilon = str(spec.norm), str(spec.severity)
    stated = epsilon.removesuffix(STATED)
    if stated in _MAGNITUDES.get(norm, ()) and (norm == "linf" or stated != epsilon):
        return _NAMES[_MAGNITUDES[norm].index(stated)]
    return epsilon if norm == "linf" else f"{norm} {epsilon}"


def _attacked(
    clean: pa.Table,
    attacks: Mapping[NoiseSpec, pa.Table],
    groups: Mapping[str, Group],
    drawn: JointDraws,
    intervals: dict[str, Any],
) -> dict[str, Any]:
    robust: dict[str, dict[str, float | None]] = {}
    for spec, table in attacks.items():
        name, epsilon = _name(spec), str(spec.severity)
        asked = _restricted(clean, [table])
        right = int(column(asked, "correct").sum())
        value = adversarial_robustness(asked, table) if right else None
        robust.setdefault(name, {})[epsilon] = value
        if value is not None:
            bounds = _share_interval(drawn.standing((spec,)), value, right)
            intervals.setdefault("AR", {}).setdefault(name, {})[epsilon] = bounds
    worst: dict[str, float | None] = {}
    for name, group in groups.items():
        found = [attacks[spec] for spec in group]
        asked = _restricted(clean, found)
        right = int(column(asked, "correct").sum())
        value = worst_case_robustness(asked, found) if right else None
        worst[name] = value
        if value is not None:
            intervals.setdefault("WCAR", {})[name] = _share_interval(drawn.standing(group), value, right)
    counted = {name: [_name(spec) for spec in group] for name, group in groups.items()}
    return {"AR": robust, "WCAR": worst, "WCAR_attacks": counted}


def _corrupted(
    tables: Mapping[NoiseSpec | None, pa.Table],
    natural: Mapping[tuple[str, int], NoiseSpec],
    drawn: JointDraws,
    intervals: dict[str, Any],
) -> dict[str, Any]:
    wanted = [(name, severity) for name in ALEXNET_ERROR for severity in SEVERITIES]
    if not all(cell in natural for cell in wanted):
        return {"NR": None, "mCE": None, "relative_mCE": None}
    accuracy = {cell: top1(tables[natural[cell]]) for cell in wanted}
    cells = np.stack([drawn.accuracy(natural[cell]) for cell in wanted], axis=1)
    reference = np.array([ALEXNET_ERROR[name] for name, _ in wanted])
    worse = drawn.accuracy(None)[:, None] - cells
    intervals["NR"] = _interval(cells.mean(1))
    intervals["mCE"] = _interval(100 * ((1 - cells) / reference).mean(1))
    intervals["relative_mCE"] = _interval(100 * (worse / (reference - ALEXNET_CLEAN_ERROR)).mean(1))
    return {
        "NR": natural_robustness(accuracy),
        "mCE": mean_corruption_error(accuracy),
        "relative_mCE": relative_mean_corruption_error(accuracy, top1(tables[None])),
    }


def _systematic(
    clean: pa.Table,
    system: Mapping[NoiseSpec, pa.Table],
    ddof: int,
    drawn: JointDraws,
    intervals: dict[str, Any],
) -> dict[str, Any]:
    grid = [spec for spec in system if spec.name == _GRID]
    mean = deviation = None
    if len(grid) > ddof:
        mean, deviation = systematic_robustness([top1(system[spec]) for spec in grid], ddof=ddof)
        cells = np.stack([drawn.accuracy(spec) for spec in grid], axis=1)
        intervals["SR_mean"] = _interval(cells.mean(1))
        # Resampling spreads the cells by an amount of its own, and the figure would often lie below its interval; so
        # the draws are scaled until their mean is the figure, and say how it would vary with other samples.
        spread = cells.std(1, ddof=ddof)
        middle = float(np.nanmean(spread))
        intervals["SR_std"] = _interval(spread * (deviation / middle if middle > 0 else 0.0))
    single = {spec: table for spec, table in system.items() if "+" not in spec.name}
    # Zeros of options that are the reference's own would thin the mean out.
    moved = {spec: table for spec, table in single.items() if table is not clean}
    return {
        "SR_mean": mean,
        "SR_std": deviation,
        "SR_ddof": ddof,
        "SR_cells": len(grid),
        "system": [one.row() for one in drops({spec: drop(clean, table) for spec, table in moved.items()})],
    }


def _name(spec: NoiseSpec) -> str:
    return ":".join(part for part in (spec.name, spec.norm, spec.option) if part)


def _restricted(clean: pa.Table, tables: Sequence[pa.Table]) -> pa.Table:
    """Return the clean records of the samples that every other table holds."""
    for table in tables:
        clean = clean.take(pa.array(joined(clean, table)[0]))
    return clean


def _interval(drawn: Float64[np.ndarray, " draws"]) -> dict[str, float]:
    found = percentile_interval(drawn, _CONFIDENCE)
    return {"low": found.low, "high": found.high}


def _share_interval(drawn: Float64[np.ndarray, " draws"], value: float, count: int) -> dict[str, float]:
    """Return the interval of a share of `count` samples."""
    if 0 < value < 1:
        return _interval(drawn)
    found = wilson(round(value * count), count, _CONFIDENCE)
    return {"low": found.low, "high": found.high}


def _certain_drop(clean: pa.Table, noisy: pa.Table, rng: np.random.Generator) -> dict[str, float]:
    """Return the interval of a drop that no draw changes."""
    left, right = joined(clean, noisy)
    before, after = column(clean, "correct")[left], column(noisy, "correct")[right]
    found = paired_difference(before, after, rng=rng, confidence=_CONFIDENCE)
    return {"low": -found.high, "high": -found.low}
