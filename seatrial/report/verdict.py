"""The outcome of a trial in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seatrial.report.subject import named
from seatrial.report.summary import SummaryRow
from seatrial.report.wording import (
    change,
    change_span,
    figure,
    finite,
    is_share,
    metric_name,
    milliseconds,
    ratio,
    size,
)


def _compared(factor: float, more: str, less: str) -> str:
    """`2.4× faster`, `1.3× slower`, `as fast`: within 2 % nothing is claimed."""
    if factor >= 1.02:
        return f"{ratio(factor)} {more}"
    return f"{ratio(1 / factor)} {less}" if factor <= 1 / 1.02 else ""


def _points(metric: str) -> str:
    return " points" if is_share(metric) else ""


def title(row: SummaryRow | None) -> str:
    """Return the verdict in one line: `w8a8 on openvino: 2.4× faster, 3.9× smaller, top-1 −0.2 points`."""
    if row is None:
        return "Nothing was evaluated"
    variant, parts = row.variant, []
    if row.reference is not None and row.reference is not variant:
        if row.speedup:
            parts.append(_compared(row.speedup, "faster", "slower") or "as fast")
        if row.shrink:
            parts.append(_compared(row.shrink, "smaller", "larger") or "as large")
        if row.difference is not None:
            points = change(row.difference, variant.metric) + _points(variant.metric)
            parts.append(f"{metric_name(variant.metric)} {points}")
    if not parts:
        if variant.median_ms is not None:
            parts.append(f"{milliseconds(variant.median_ms)} ms")
        if variant.value is not None:
            parts.append(f"{metric_name(variant.metric)} {figure(variant.value, variant.metric)}")
    return f"{variant.title}: {', '.join(parts)}" if parts else variant.title


def sentences(
    result: Mapping[str, Any], rows: Sequence[SummaryRow], row: SummaryRow | None, paired: Mapping[str, Any]
) -> list[str]:
    """Return what stands under the verdict, in plain text.

    `paired` may hold, by `name@target`, the paired interval of the difference against float (`low`, `high`).
    """
    if row is None:
        return ["The run has no variant. Its warnings stand at the end of this page."]
    variant, base = row.variant, row.reference
    said = []
    data = result.get("data")
    count = finite(data.get("n")) if isinstance(data, Mapping) else None
    about = f"{named(result.get('model')) or 'The model'} on {named(data) or 'the data'}"
    about += f" ({count:,.0f} samples)" if count else ""
    if base is not None and base is not variant:
        facts = []
        if variant.median_ms is not None and base.median_ms is not None:
            facts.append(f"{milliseconds(variant.median_ms)} ms instead of {milliseconds(base.median_ms)} ms")
        if variant.size_bytes is not None and base.size_bytes is not None:
            facts.append(f"{size(variant.size_bytes)} instead of {size(base.size_bytes)}")
        if variant.value is not None and base.value is not None:
            fact = f"{metric_name(variant.metric)} {figure(variant.value, variant.metric)} instead of "
            facts.append(fact + figure(base.value, base.metric))
        said.append(f"{about}: {', '.join(facts)}." if facts else f"{about}.")
    else:
        said.append(f"{about}; there is no float variant on {variant.target} to compare it with.")
    known = paired.get(f"{variant.name}@{variant.target}")
    if isinstance(known, Mapping):
        span = change_span(finite(known.get("low")), finite(known.get("high")), variant.metric)
        if span:
            said.append(f"The difference in {metric_name(variant.metric)}, sample by sample, is {span} (95 %).")
    said += _noise_sentences(row, rows)
    said += _better_choice(row, rows)
    return said


def _noise_sentences(row: SummaryRow, rows: Sequence[SummaryRow]) -> list[str]:
    metric = row.variant.metric
    beside = next((other for other in rows if other.variant is row.reference), None)
    facts = []
    for family, noise in row.changes.items():
        if noise.mean is None:
            continue
        fact = f"{family} {change(noise.mean, metric)}{_points(metric)}"
        other = beside.changes.get(family) if beside and beside is not row else None
        if other and other.mean is not None:
            fact += f" (float {change(other.mean, metric)})"
        facts.append(fact)
    return [f"Mean change under noise: {', '.join(facts)}."] if facts else []


def _better_choice(row: SummaryRow, rows: Sequence[SummaryRow]) -> list[str]:
    """Name a faster variant that is at least as accurate: the reader should not quantize for nothing."""
    mine = row.variant
    if mine.median_ms is None or mine.value is None:
        return []
    better = [
        other.variant
        for other in rows
        if other.variant is not mine
        and other.variant.median_ms is not None
        and other.variant.median_ms < 0.98 * mine.median_ms
        and other.variant.metric == mine.metric
        and other.variant.value is not None
        and other.variant.value >= mine.value
    ]
    if not better:
        return []
    best = min(better, key=lambda variant: variant.median_ms or 0.0)
    return [
        f"Faster here and at least as accurate: {best.title} with {milliseconds(best.median_ms)} ms and "
        f"{metric_name(best.metric)} {figure(best.value, best.metric)}."
    ]
