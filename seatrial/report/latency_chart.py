"""Latency against accuracy: one point per variant, with the spread of the times and the interval of the accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from seatrial.report.intervals import ends, whiskers
from seatrial.report.marks import Mark
from seatrial.report.markup import chart_text
from seatrial.report.plot import Plot, axis, plot
from seatrial.report.subject import Variant
from seatrial.report.wording import figure, is_share, metric_name, milliseconds, span

HEIGHT_PX = 380
WIDE = 12.0
"""A ratio of the slowest to the fastest variant from which on the axis is logarithmic."""


def latency_chart(variants: Sequence[Variant], drawn: Sequence[Mark], *, place: str) -> Plot | None:
    """Return the chart, None where no variant has both a latency and a figure; variants without one are left out."""
    points = [(v, m) for v, m in zip(variants, drawn) if v.median_ms is not None and v.value is not None]
    if not points:
        return None
    metric = points[0][0].metric
    points = [(v, m) for v, m in points if v.metric == metric]
    scale = 100.0 if is_share(metric) else 1.0
    traces, said = [], []
    for variant, mark in points:
        time, value = variant.median_ms or 0.0, variant.value or 0.0
        spread = variant.latency or {}
        times = [milliseconds(spread.get(key)) for key in ("p10", "p90")]
        text = f"{milliseconds(time)} ms ({times[0]} to {times[1]})"
        accuracy = f"{metric_name(metric)} {figure(value, metric)}"
        accuracy += f" ({span(*variant.reach[1:], metric)})" if variant.interval else ""
        said.append(f"{variant.title}: {text}, {accuracy}")
        traces.append(
            go.Scatter(
                x=[time],
                y=[scale * value],
                mode="markers",
                name=chart_text(variant.title),
                marker=mark.marker(12),
                error_x=whiskers([(time, spread.get("p10"), spread.get("p90"))], mark.color),
                error_y=whiskers([variant.reach], mark.color, scale=scale),
                customdata=[f"<b>{chart_text(variant.title)}</b><br>{chart_text(text)}<br>{chart_text(accuracy)}"],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    times_ms = [v.median_ms or 0.0 for v, _ in points]
    wide = min(times_ms) > 0 and max(times_ms) / min(times_ms) > WIDE
    threads = {v.latency["threads"] for v, _ in points if v.latency}
    batch = {v.latency["batch"] for v, _ in points if v.latency}
    how = f", batch {batch.pop():.0f}" if len(batch) == 1 and None not in batch else ""
    how += f", {threads.pop():.0f} threads" if len(threads) == 1 and None not in threads else ""
    x = axis(f"latency, ms{how}", **({"type": "log"} if wide else {"rangemode": "tozero"}))
    y_range = list(ends([v.reach for v, _ in points], scale=scale))
    y = axis(metric_name(metric) + (", %" if is_share(metric) else ""), range=y_range)
    return plot(
        traces,
        place=place,
        alt="Latency against accuracy. " + "; ".join(said) + ".",
        height_px=HEIGHT_PX,
        layout={"xaxis": x, "yaxis": y, "hovermode": "closest"},
    )
