"""From finished cells to the variants of the JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa

from seatrial.bench.plan import Plan
from seatrial.bench.question import group_key, group_of
from seatrial.bench.store import Entry, Store
from seatrial.core.chance import generator
from seatrial.core.noise import NoiseSpec
from seatrial.core.target import Timing
from seatrial.jobs.result import latency_data
from seatrial.jobs.variants import SIMULATION, Variant
from seatrial.metrics.accuracy import agreement, top1
from seatrial.metrics.intervals import paired_difference, wilson
from seatrial.metrics.joining import column, joined

Metric = Callable[[pd.DataFrame], float]


class Answering(Protocol):
    """What cells are of: a name for the reader, and the hash that their questions hold."""

    @property
    def label(self) -> str: ...
    @property
    def digest(self) -> str: ...


@dataclass(frozen=True)
class Cells:
    """The finished cells of one plan, by variant label and noise."""

    found: Mapping[tuple[str, NoiseSpec | None], Entry]

    @staticmethod
    def of(store: Store, plan: Plan, variants: Iterable[Answering]) -> Cells:
        """Read from the store what belongs to this plan, in the order of the variants and of its noises."""
        variants = tuple(variants)
        digests = {variant.digest: variant.label for variant in variants}
        specs = {group_key(group, plan): group.spec for group in plan.groups}
        found = {}
        for entry in store.cells():
            label = digests.get(entry.question.get("subject", ""))
            # The whole question: a folder may hold cells of another pipeline, or of Square with other queries.
            if label is not None and (key := group_of(entry.cell)) in specs:
                found[label, specs[key]] = store.read(entry.cell)
        ordered = ((variant.label, spec) for variant in variants for spec in specs.values())
        return Cells({asked: found[asked] for asked in ordered if asked in found})

    def records(self, label: str, noise: NoiseSpec | None = None) -> pa.Table | None:
        """Return the records of a cell that is done, else None."""
        entry = self.found.get((label, noise))
        return entry.table if entry is not None and entry.status == "done" else None


def score(records: pa.Table, metric: Metric | None) -> float:
    """Return the metric of records, top-1 without one."""
    return top1(records) if metric is None else metric(records.to_pandas())


def score_name(metric: Metric | None) -> str:
    """Return what results call a metric."""
    return "top1" if metric is None else getattr(metric, "__name__", "metric")


def variant_data(
    variant: Variant,
    model: str,
    clean: Cells,
    noisy: Cells,
    specs: Iterable[NoiseSpec],
    timing: Timing | None,
    metric: Metric | None,
    reference: pa.Table | None,
) -> dict[str, Any]:
    """Return one entry of `variants`; figures that do not exist are None."""
    records = clean.records(variant.label)
    simulated = clean.records(f"{variant.name}@{SIMULATION}")
    value = None if records is None else score(records, metric)
    rows = [noise_cell(variant, model, noisy, spec, metric) for spec in specs]
    return {
        "name": variant.name,
        "target": variant.target,
        "bits": variant.artefact.bits,
        "size_bytes": variant.artefact.size_bytes,
        "latency_ms": latency_data(timing),
        "latency_ms_batch_8": latency_data(timing, 8),
        "throughput_per_s": None if timing is None else timing.throughput_per_s,
        "load_ms": None if timing is None else timing.load_ms,
        "peak_memory_bytes": None if timing is None else timing.peak_memory_bytes,
        "metric": score_name(metric),
        "value": value,
        "top1": None if records is None else top1(records),
        "agreement": None if records is None or reference is None else agreement(records, reference),
        "agreement_simulated": None if records is None or simulated is None else agreement(records, simulated),
        "noise": rows,
    }


def noise_cell(
    variant: Variant, model: str, noisy: Cells, spec: NoiseSpec, metric: Metric | None = None
) -> dict[str, Any]:
    """Return one noise cell of the JSON; figures that do not exist are None."""
    entry = noisy.found.get((variant.label, spec))
    records = noisy.records(variant.label, spec)
    clean = noisy.records(variant.label)
    row = blank_cell(model, variant.name, variant.target, spec, entry)
    row["metric"] = score_name(metric)
    if clean is not None:
        row["clean"] = score(clean, metric)
    if records is not None:
        row |= {"n": len(records), "value": score(records, metric)}
        if metric is None:
            interval = wilson(int(column(records, "correct").sum()), len(records))
            row |= {"low": interval.low, "high": interval.high}
    return row


def blank_cell(model: str, variant: str, target: str, spec: NoiseSpec, entry: Entry | None) -> dict[str, Any]:
    """Return a noise cell of the JSON without its figures, from what the store holds of it (None: nothing)."""
    return {
        "model": model,
        "variant": variant,
        "target": target,
        "family": spec.family,
        "name": spec.name,
        "option": spec.option,
        "norm": spec.norm,
        "severity": spec.severity,
        "access": None if entry is None else entry.access,
        "metric": None,
        "value": None,
        "low": None,
        "high": None,
        "clean": None,
        "n": 0,
        "status": "failed" if entry is None else entry.status,
        "reason": "the cell is missing from the store" if entry is None else entry.reason,
    }


def paired(clean: Cells, variants: Iterable[Variant], seed: int) -> dict[str, dict[str, float]]:
    """Return, for each variant but the float simulation, the paired interval of its accuracy minus the float one's."""
    base = clean.records(f"float@{SIMULATION}")
    found = {}
    for variant in variants:
        records = clean.records(variant.label)
        if base is None or records is None or variant.label == f"float@{SIMULATION}":
            continue
        left, right = joined(base, records)
        difference = paired_difference(
            column(base, "correct")[left],
            column(records, "correct")[right],
            rng=generator(seed, "paired", variant.label),
        )
        found[variant.label] = {"low": difference.low, "high": difference.high, "drop_at_most": difference.drop_at_most}
    return found
