"""What a report is about: the JSON of a trial as typed values, with every absent figure as None."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from seatrial.core.noise import Family, NoiseSpec
from seatrial.errors import BadInput
from seatrial.metrics.intervals import Interval, wilson
from seatrial.report.intervals import Reach
from seatrial.report.wording import finite, is_share

FAMILIES: tuple[Family, ...] = ("attack", "corruption", "system")
SIMULATION = "torch"
STATUSES = ("done", "no-noise", "not-applicable", "failed")


@dataclass(frozen=True)
class NoiseCell:
    """One variant under one noise; `low` and `high` are the ends of the interval of `value`."""

    spec: NoiseSpec
    access: str | None
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    status: str
    reason: str | None
    clean: float | None = None
    """The metric on the same samples without the noise."""

    @property
    def reach(self) -> Reach:
        """The figure with the ends of its interval."""
        return self.value, self.low, self.high

    @property
    def done(self) -> bool:
        """Whether the cell has a figure."""
        return self.status == "done" and self.value is not None


@dataclass(frozen=True)
class Variant:
    """One model on one target; times in milliseconds, rates as fractions."""

    name: str
    target: str
    bits: str
    size_bytes: float | None
    latency: Mapping[str, float | None] | None
    metric: str
    value: float | None
    interval: Interval | None
    agreement: float | None
    agreement_simulated: float | None
    cells: tuple[NoiseCell, ...]

    @property
    def reach(self) -> Reach:
        """The figure with the ends of its interval."""
        return (self.value, self.interval.low, self.interval.high) if self.interval else (self.value, None, None)

    @property
    def title(self) -> str:
        """The variant with its target: `w8a8 on openvino`; `w8a8, simulated` where torch simulates it."""
        if self.target == SIMULATION:
            return f"{self.name}, simulated" if self.quantized else f"{self.name} on torch"
        return f"{self.name} on {self.target}"

    @property
    def quantized(self) -> bool:
        """Whether weights or activations are integers."""
        return self.bits.startswith("w")

    @property
    def median_ms(self) -> float | None:
        """Median latency in milliseconds at the batch size that was measured."""
        return self.latency["median"] if self.latency else None


def _cell(row: Mapping[str, Any]) -> NoiseCell:
    severity = row.get("severity")
    family = row.get("family")
    status = str(row.get("status") or "failed")
    if family not in FAMILIES:
        raise BadInput(f"a noise cell of the family '{family}'", f"one of {', '.join(FAMILIES)}", "write the run again")
    return NoiseCell(
        spec=NoiseSpec(
            family=cast(Family, family),
            name=str(row.get("name")),
            option=None if row.get("option") is None else str(row["option"]),
            norm=None if row.get("norm") is None else str(row["norm"]),
            severity=severity if isinstance(severity, int | None) else str(severity),
        ),
        access=None if row.get("access") is None else str(row["access"]),
        metric=str(row.get("metric") or "top1"),
        value=finite(row.get("value")),
        low=finite(row.get("low")),
        high=finite(row.get("high")),
        n=None if finite(row.get("n")) is None else int(row["n"]),
        status=status if status in STATUSES else "failed",
        reason=None if row.get("reason") is None else str(row["reason"]),
        clean=finite(row.get("clean")),
    )


def _variant(row: Mapping[str, Any], samples: int | None) -> Variant:
    latency = row.get("latency_ms")
    metric = "top1" if finite(row.get("top1")) is not None else str(row.get("metric") or "value")
    value = finite(row.get("top1")) if metric == "top1" else finite(row.get("value"))
    known = value is not None and samples and is_share(metric) and 0 <= value <= 1
    return Variant(
        name=str(row.get("name")),
        target=str(row.get("target")),
        bits=str(row.get("bits")),
        size_bytes=finite(row.get("size_bytes")),
        latency=None if not latency else {key: finite(latency.get(key)) for key in LATENCY_KEYS},
        metric=metric,
        value=value,
        interval=wilson(round(cast(float, value) * cast(int, samples)), cast(int, samples)) if known else None,
        agreement=finite(row.get("agreement")),
        agreement_simulated=finite(row.get("agreement_simulated")),
        cells=tuple(_cell(cell) for cell in row.get("noise") or ()),
    )


LATENCY_KEYS = ("median", "p10", "p90", "runs", "batch", "threads")


def variants(result: Mapping[str, Any]) -> tuple[Variant, ...]:
    """Return the variants of a trial in the order of its JSON; raises BadInput for an unknown noise family.

    The interval of a share is Wilson's, over as many samples as `result["data"]["n"]` states.
    """
    data = result.get("data")
    samples = finite(data.get("n")) if isinstance(data, Mapping) else None
    rows: Iterable[Mapping[str, Any]] = result.get("variants") or ()
    return tuple(_variant(row, int(samples) if samples and samples >= 1 else None) for row in rows)


def reference(variant: Variant, among: Iterable[Variant]) -> Variant | None:
    """Return the float variant on the same target, None where there is none; `float` itself has itself."""
    floats = [v for v in among if v.target == variant.target and not v.quantized]
    plain = [v for v in floats if v.name == "float"] or [v for v in floats if v.bits == "float32"]
    return plain[0] if plain else None


def named(part: object) -> str:
    """Return the name of the model or data in a result, which is a mapping with `name` or plain text."""
    if isinstance(part, Mapping):
        return str(part.get("name") or part.get("path") or "")
    return "" if part is None else str(part)
