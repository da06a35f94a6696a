"""The summary as a table, and the figures of the verdict as tiles."""

from __future__ import annotations

from collections.abc import Sequence

from seatrial.report.marks import Mark
from seatrial.report.markup import escaped, table
from seatrial.report.summary import NoiseChange, SummaryRow
from seatrial.report.wording import (
    ABSENT,
    change,
    figure,
    is_share,
    metric_name,
    milliseconds,
    noise_title,
    ratio,
    size,
    span,
)


def _stacked(big: str, small: str) -> str:
    return escaped(big) + (f'<span class="sub">{escaped(small)}</span>' if small else "")


def _noise(noise: NoiseChange | None, metric: str) -> str:
    if noise is None or not noise.asked:
        return ABSENT
    if noise.mean is None:
        return _stacked(ABSENT, "without a figure")
    return _stacked(change(noise.mean, metric), f"worst {change(noise.worst, metric)}" if noise.done > 1 else "")


def summary_table(rows: Sequence[SummaryRow], first: SummaryRow | None, drawn: Sequence[Mark]) -> str:
    """Return the table of variants; the row of the verdict is set off."""
    if not rows:
        return '<p class="quiet">The run has no variant.</p>'
    families = list(rows[0].changes)
    metrics = dict.fromkeys(row.variant.metric for row in rows)
    metric = metric_name(next(iter(metrics))) if len(metrics) == 1 else "metric"
    points = ", points" if all(is_share(name) for name in metrics) else ""
    heads = ["variant", "target", "size", "latency, ms", "speed-up", metric, "equal answers"]
    heads += [f"{family}{points}" for family in families]
    lines = []
    for row, mark in zip(rows, drawn):
        v = row.variant
        spread = v.latency or {}
        times = [milliseconds(spread.get(key)) for key in ("p10", "p90")]
        interval = span(v.interval.low, v.interval.high, v.metric) if v.interval else ""
        value = figure(v.value, v.metric) + ("" if len(metrics) == 1 else f" {metric_name(v.metric)}")
        lines.append(
            [
                f"{mark.svg}{escaped(v.name, 80)}",
                _stacked("torch", "simulation") if v.target == "torch" and v.quantized else escaped(v.target, 80),
                escaped(size(v.size_bytes)),
                _stacked(milliseconds(v.median_ms), f"{times[0]} to {times[1]}" if v.latency else ""),
                escaped(ratio(row.speedup)),
                _stacked(value, interval),
                escaped(figure(v.agreement, "agreement")),
                *(_noise(row.changes.get(family), v.metric) for family in families),
            ]
        )
    about = (
        "Latency: median, and 10th to 90th percentile. Speed-up: against float on the same target. "
        f"{metric}: with its 95\N{NO-BREAK SPACE}% interval. "
        "Equal answers: the share of samples with the float model's answer."
    )
    if families:
        about += " Noise: the mean change against the variant's own clean figure."
    html = table(heads, lines, caption=about, numeric=range(2, len(heads)))
    if first is None or len(rows) < 2:
        return html
    return _set_off(html, next(i for i, row in enumerate(rows) if row is first))


def _set_off(html: str, index: int) -> str:
    """Mark one row of a table; rows are told from the head by where the body begins."""
    head, body = html.split("<tbody", 1)
    parts = body.split('<tr role="row">')
    marked = '<tr role="row">'.join(parts[: index + 1]) + '<tr role="row" class="headline">'
    return head + "<tbody" + marked + '<tr role="row">'.join(parts[index + 1 :])


def tiles(row: SummaryRow | None) -> str:
    """Return the figures of the verdict as HTML, '' without a variant."""
    if row is None:
        return ""
    v, base = row.variant, row.reference
    other = base if base is not None and base is not v else None
    shown: list[tuple[str, str, str]] = []
    if v.median_ms is not None:
        note = f"float {milliseconds(other.median_ms)} ms" if other and other.median_ms is not None else ""
        shown.append(("Latency", f"{milliseconds(v.median_ms)} ms", note))
    if v.size_bytes is not None:
        note = f"float {size(other.size_bytes)}" if other and other.size_bytes is not None else ""
        shown.append(("Size", size(v.size_bytes), note))
    if v.value is not None:
        note = f"float {figure(other.value, other.metric)}" if other and other.value is not None else ""
        if not note and v.interval:
            note = span(v.interval.low, v.interval.high, v.metric)
        shown.append((metric_name(v.metric).capitalize(), figure(v.value, v.metric), note))
    worst = [n for n in row.changes.values() if n.worst is not None and n.worst_cell is not None]
    if worst:
        least = min(worst, key=lambda noise: noise.worst or 0.0)
        assert least.worst_cell is not None
        unit = " points" if is_share(v.metric) else ""
        shown.append(("Worst noise", change(least.worst, v.metric) + unit, noise_title(least.worst_cell.spec)))
    body = "".join(
        f'<div><dt>{escaped(name)}</dt><dd class="big">{escaped(big)}</dd>'
        f'<dd class="small">{escaped(small, 80) or "&nbsp;"}</dd></div>'
        for name, big, small in shown
    )
    return f'<dl class="tiles">{body}</dl>' if body else ""
