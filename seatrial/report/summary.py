"""The figures of the summary: one row per variant with its speed-up and its change under each family of noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seatrial.core.noise import Family
from seatrial.report.subject import FAMILIES, NoiseCell, Variant, reference, variants


@dataclass(frozen=True)
class NoiseChange:
    """A variant under one family of noise, against its own clean figure: mean and worst change, in the metric's unit.

    `done` of `asked` cells have a figure.
    """

    mean: float | None
    worst: float | None
    worst_cell: NoiseCell | None
    done: int
    asked: int


@dataclass(frozen=True)
class SummaryRow:
    """A variant beside the float variant on the same target.

    `speedup` is how many times faster, `shrink` how many times smaller, `difference` how much the metric changes.
    """

    variant: Variant
    reference: Variant | None
    speedup: float | None
    shrink: float | None
    difference: float | None
    changes: Mapping[Family, NoiseChange]


def _over(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _difference(base: Variant | None, variant: Variant) -> float | None:
    if base is None or base.metric != variant.metric or base.value is None or variant.value is None:
        return None
    return variant.value - base.value


def _change(variant: Variant, family: Family) -> NoiseChange:
    cells = [cell for cell in variant.cells if cell.spec.family == family]
    done = [cell for cell in cells if cell.done and cell.metric in (variant.metric, "top1")]
    if variant.value is None or not done:
        return NoiseChange(None, None, None, len(done), len(cells))

    def change(cell: NoiseCell) -> float:
        # Noise may be asked of fewer samples than clean data: compare on the same ones where the cell says how.
        return (cell.value or 0.0) - (cell.clean if cell.clean is not None else variant.value or 0.0)

    worst = min(done, key=change)
    mean = math.fsum(change(cell) for cell in done) / len(done)
    return NoiseChange(mean, change(worst), worst, len(done), len(cells))


def summary_rows(result: Mapping[str, Any]) -> tuple[SummaryRow, ...]:
    """Return one row per variant of a trial's JSON, in its order; a family without cells is left out of `changes`."""
    every = variants(result)
    asked: list[Family] = [
        family for family in FAMILIES if any(c.spec.family == family for v in every for c in v.cells)
    ]
    rows = []
    for variant in every:
        base = reference(variant, every)
        rows.append(
            SummaryRow(
                variant=variant,
                reference=base,
                speedup=_over(base.median_ms, variant.median_ms) if base else None,
                shrink=_over(base.size_bytes, variant.size_bytes) if base else None,
                difference=_difference(base, variant),
                changes={family: _change(variant, family) for family in asked},
            )
        )
    return tuple(rows)


def headline(rows: Sequence[SummaryRow]) -> SummaryRow | None:
    """Return the row the report is about: the first quantized variant that is timed, deployed, or there at all."""
    quantized = [row for row in rows if row.variant.quantized]
    for group in (
        [row for row in quantized if row.variant.median_ms is not None and row.variant.target != "torch"],
        [row for row in quantized if row.variant.target != "torch"],
        quantized,
        list(rows),
    ):
        if group:
            return group[0]
    return None
