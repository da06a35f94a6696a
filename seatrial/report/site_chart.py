"""Where quantization hurts: the signal-to-quantization-noise ratio of the worst sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from seatrial.report.markup import chart_text, shortened
from seatrial.report.plot import Plot, axis, plot
from seatrial.report.wording import finite

WORST = 30
ROW_PX, AXIS_PX = 34, 52
NAME_CHARACTERS = 46
"""What fits on one line of a phone."""


@dataclass(frozen=True)
class SiteError:
    """A site's ratio of signal to quantization noise in decibel; higher is better, None where it is unknown."""

    site: str
    bits: str
    sqnr_db: float | None


def site_errors(rows: Sequence[Mapping[str, Any]]) -> list[SiteError]:
    """Return sites from worst to best, those without a figure last; equal ones by name."""
    found = [
        SiteError(str(r.get("site")), "" if r.get("bits") is None else str(r["bits"]), finite(r.get("sqnr_db")))
        for r in rows
    ]
    return sorted(found, key=lambda s: (s.sqnr_db is None, s.sqnr_db or 0.0, s.site))


def site_chart(errors: Sequence[SiteError], color: str, *, place: str) -> Plot | None:
    """Return a bar per site, the worst 30, its name above the bar; None where no site has a figure."""
    shown = [error for error in errors if error.sqnr_db is not None][:WORST]
    if not shown:
        return None
    levels = [error.sqnr_db or 0.0 for error in shown]
    left = min(0.0, *levels)
    y = [ROW_PX * (i + 0.68) for i in range(len(shown))]
    bars = go.Bar(
        x=levels,
        y=y,
        orientation="h",
        width=[ROW_PX * 0.34] * len(shown),
        marker={"color": color, "cornerradius": 2},
        text=[f"{level:.1f} dB" for level in levels],
        textposition="outside",
        textfont={"size": 11},
        cliponaxis=False,
        customdata=[
            f"<b>{chart_text(e.site, 200)}</b><br>{e.sqnr_db:.2f} dB"
            + (f"<br>{chart_text(e.bits)} bits" * bool(e.bits))
            for e in shown
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )
    notes = [
        {
            "text": chart_text(shortened(error.site, NAME_CHARACTERS)),
            "xref": "paper",
            "x": 0,
            "xanchor": "left",
            "y": ROW_PX * (i + 0.28),
            "yanchor": "middle",
            "showarrow": False,
            "font": {"size": 12},
        }
        for i, error in enumerate(shown)
    ]
    height = ROW_PX * len(shown)
    said = "; ".join(f"{error.site}: {level:.1f} dB" for error, level in zip(shown[:5], levels))
    return plot(
        [bars],
        place=place,
        alt=f"Signal-to-quantization-noise ratio of the {len(shown)} worst sites. {said}.",
        height_px=height + AXIS_PX,
        layout={
            "xaxis": axis(
                "signal to quantization noise, dB (higher is better)", range=[left, max(*levels, 1.0) * 1.14]
            ),
            "yaxis": {"range": [height, 0], "visible": False, "fixedrange": True},
            "annotations": notes,
            "margin": {"l": 6, "r": 14, "t": 0, "b": AXIS_PX},
            "hovermode": "closest",
        },
    )
