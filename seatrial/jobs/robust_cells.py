"""From a finished cell to its row in the JSON of `seatrial robustness`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from seatrial.core.noise import NoiseSpec
from seatrial.jobs.measured import Cells, noise_cell
from seatrial.jobs.variants import Variant
from seatrial.metrics.accuracy import adversarial_robustness, robust_accuracy
from seatrial.metrics.intervals import bootstrap_mean_difference, paired_difference, wilson
from seatrial.metrics.joining import column, joined
from seatrial.noise.ball import budget

_SYSTEM = ("difference", "difference_low", "difference_high", "churn", "kl", "picture_difference")
_ATTACK = ("epsilon", "AR", "robust_accuracy", "zero_gradient", "queries")
FAMILY_KEYS = (*_SYSTEM, *_ATTACK)
"""What one family of noise alone has."""


def cell_data(
    model: str,
    variant: Variant,
    spec: NoiseSpec,
    answered: Cells,
    shape: Sequence[int],
    *,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return one cell: the keys of the design, and what its family has beside them (null where it does not apply).

    `epsilon` is the budget of an attack in the scale [0, 1] for inputs of `shape` (channels, height, width), to which
    one that is stated for 3x224x224 was scaled.
    Differences, churn, divergence (nats) and picture difference (levels of 255) are means over the samples that both
    cells hold, against the reference pipeline, each with a paired 95 % interval.
    """
    records, clean = answered.records(variant.label, spec), answered.records(variant.label)
    row = noise_cell(variant, model, answered, spec) | dict.fromkeys(FAMILY_KEYS)
    if spec.family == "attack":
        row["epsilon"] = budget(str(spec.norm), str(spec.severity), shape)
    if records is not None and clean is not None:
        if spec.family == "system":
            row |= _moved(clean, records, rng)
        elif spec.family == "attack":
            row |= _attacked(clean, records)
    return row


def _moved(clean: pa.Table, records: pa.Table, rng: np.random.Generator) -> dict[str, Any]:
    left, right = joined(clean, records)
    before, after = column(clean, "correct")[left], column(records, "correct")[right]
    difference = paired_difference(before, after, rng=rng)
    changed = column(clean, "answer")[left] != column(records, "answer")[right]
    found: dict[str, Any] = {
        "difference": difference.difference,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "churn": _share(changed, rng),
    }
    for name in ("kl", "picture_difference"):
        if name in records.column_names:
            found[name] = mean_of(column(records, name)[right].astype(np.float64), rng)
    return found


def mean_of(values: np.ndarray, rng: np.random.Generator) -> dict[str, float] | None:
    """Return the mean with its interval; None where a value is not finite (scores that are not numbers)."""
    if not np.isfinite(values).all():
        return None
    interval = bootstrap_mean_difference(np.zeros(len(values)), values, rng=rng, resamples=2000)
    return {"value": float(values.mean()), "low": interval.low, "high": interval.high}


def _share(which: np.ndarray, rng: np.random.Generator) -> dict[str, float] | None:
    """Return the share of true values; where none or all are, the bootstrap has no width and Wilson's interval has."""
    if which.any() and not which.all():
        return mean_of(which.astype(np.float64), rng)
    interval = wilson(int(which.sum()), len(which))
    return {"value": float(which.mean()), "low": interval.low, "high": interval.high}


def _attacked(clean: pa.Table, records: pa.Table) -> dict[str, Any]:
    zero = column(records, "zero_gradient").astype(np.float64)
    share = float(np.nanmean(zero)) if np.isfinite(zero).any() else None
    right = bool(column(clean, "correct").any())
    return {
        "AR": adversarial_robustness(clean, records) if right else None,
        "robust_accuracy": robust_accuracy(clean, records),
        "zero_gradient": share,
        "queries": float(column(records, "queries").mean()),
    }
