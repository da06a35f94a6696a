"""The range of each channel of a tensor before and after a migration: two bands on one scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from seatrial.report.marks import COLORS
from seatrial.report.markup import escaped
from seatrial.report.plot import Plot, axis, plot
from seatrial.report.wording import ABSENT, MINUS, finite, ratio, significant

HEIGHT_PX = 190
THIN = 120
_FILLS = {"before": "rgba(217,96,15,0.5)", "after": "rgba(26,127,196,0.85)"}
"""`COLORS` 1 and 0, so that what lies below shows through."""


def signed(value: object) -> str:
    """Return a number of three digits with its sign: `−97.1`."""
    number = finite(value)
    return ABSENT if number is None else significant(number).replace("-", MINUS)


def width(part: Mapping[str, Any]) -> float:
    """Return how wide the range of the tensor is, 0 where it is unknown."""
    low, high = finite(part.get("low")), finite(part.get("high"))
    return 0.0 if low is None or high is None else high - low


def extent(part: Mapping[str, Any]) -> str:
    """Return the range of a tensor: `−97.1 to 43.2`."""
    return f"{signed(part.get('low'))} to {signed(part.get('high'))}"


def unevenness(part: Mapping[str, Any]) -> str:
    """Return how much wider the widest channel is than the median one: `35.1×`."""
    return ratio(finite(part.get("widest_over_median")))


def range_key() -> str:
    """Return the key of the charts as HTML."""
    rows = "".join(
        f'<li><svg class="mark" viewBox="0 0 16 16" aria-hidden="true"><rect x="2" y="2" width="12" height="12" '
        f'rx="2" fill="{color}"/></svg>{escaped(text)}</li>'
        for color, text in ((COLORS[1], "before"), (COLORS[0], "after"))
    )
    return f'<ul class="key" aria-label="Key">{rows}</ul>'


def range_chart(told: Mapping[str, Any], *, place: str) -> Plot | None:
    """Return the chart of one entry of `channel_ranges`; None where it holds no channels."""
    step = max(1, int(finite(told.get("channels_per_entry")) or 1))
    traces, ends = [], [0.0]
    for name, fill in _FILLS.items():
        part: Mapping[str, Any] = told.get(name) or {}
        lows, highs = ([finite(value) for value in part.get(key) or ()] for key in ("lows", "highs"))
        if not lows or len(lows) != len(highs):
            return None
        ends += [value for value in (*lows, *highs) if value is not None]
        # One step of the band for each entry, drawn to its own borders at both ends of the axis.
        shared: dict[str, Any] = {
            "x": [-0.5, *(step * (i + 0.5) - 0.5 for i in range(len(lows))), step * len(lows) - 0.5],
            "mode": "lines",
            # Of many channels each would be too thin to see without an outline.
            "line": {"width": 0.7 if len(lows) > THIN else 0, "color": fill, "shape": "hvh"},
        }
        traces.append(go.Scatter(**shared, y=[lows[0], *lows, lows[-1]], hoverinfo="skip"))
        traces.append(
            go.Scatter(
                **shared,
                y=[highs[0], *highs, highs[-1]],
                fill="tonexty",
                fillcolor=fill,
                customdata=[lows[0], *lows, lows[-1]],
                hovertemplate=f"{name}: %{{customdata:.3~g}} to %{{y:.3~g}}<extra></extra>",
            )
        )
    before, after = told["before"], told["after"]
    margin = 0.05 * (max(ends) - min(ends)) or 1.0
    return plot(
        traces,
        place=place,
        alt=f"Ranges of {told.get('channels')} channels at {told.get('place')}: {extent(before)} before, the widest "
        f"channel {unevenness(before)} the median; {extent(after)} after, {unevenness(after)}.",
        height_px=HEIGHT_PX,
        layout={
            "xaxis": axis("channel", nticks=6, showgrid=False, range=[-0.5, step * (len(traces[0].y) - 2) - 0.5]),
            "yaxis": axis("", range=[min(ends) - margin, max(ends) + margin], nticks=5, zeroline=True),
            "hovermode": "x",
        },
    )
