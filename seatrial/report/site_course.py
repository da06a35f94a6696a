"""The error of every site in order of execution, plain rounding against a method: two dots a site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from seatrial.report.marks import COLORS, HOLLOW, Mark
from seatrial.report.markup import chart_text, escaped
from seatrial.report.ohq_strip import blocks
from seatrial.report.plot import Plot, axis, plot
from seatrial.report.wording import ABSENT, MINUS, finite

HEIGHT_PX = 300
MOST_TICKS = 14
BEFORE, AFTER = Mark(COLORS[1], HOLLOW), Mark(COLORS[0], "circle")


@dataclass(frozen=True)
class SiteChange:
    """Signal to quantization noise in decibel with plain rounding and with a method, None where unknown: of what reads
    a site if it alone is rounded, and of the site's own tensor."""

    site: str
    bits: str
    before_db: float | None
    after_db: float | None
    own_before_db: float | None
    own_after_db: float | None

    @property
    def is_weight(self) -> bool:
        """Whether a parameter is rounded here."""
        return self.site.endswith(":weight")

    @property
    def levels_db(self) -> list[float]:
        """What is known of before and after."""
        return [level for level in (self.before_db, self.after_db) if level is not None]

    @property
    def gain_db(self) -> float | None:
        """How much less is lost, None where one of the two is unknown."""
        return None if self.before_db is None or self.after_db is None else self.after_db - self.before_db


def site_changes(rows: Sequence[Mapping[str, Any]]) -> list[SiteChange]:
    """Return the sites of the JSON of `seatrial quantize`, in its order."""
    return [
        SiteChange(
            str(row.get("site")),
            "" if row.get("bits") is None else str(row["bits"]),
            *(finite(row.get(f"{name}{when}")) for name in ("reader_sqnr_db", "sqnr_db") for when in ("_before", "")),
        )
        for row in rows
    ]


def decibels(value: float | None) -> str:
    """Return a level: `31.2`, a dash where it is unknown."""
    return ABSENT if value is None else f"{value:.1f}".replace("-", MINUS)


def signed_db(value: float) -> str:
    """Return a change with its sign and unit: `+24.7 dB`, `±0.0 dB` where it rounds to nothing."""
    text = decibels(abs(value))
    return ("±" if float(text) == 0 else "+" if value > 0 else MINUS) + f"{text} dB"


def course_key(method: str, plain: str | None) -> str:
    """Return the key of the charts as HTML; `plain` is the method that stands before, None where there is none."""
    rows = f"<li>{AFTER.svg}{escaped(method, 80)}</li>"
    if plain is not None:
        rows = f"<li>{BEFORE.svg}{escaped(plain, 80)}</li>" + rows
    return f'<ul class="key" aria-label="Key">{rows}</ul>'


def course_chart(sites: Sequence[SiteChange], *, place: str, what: str) -> Plot | None:
    """Return the chart of some sites, in order of execution; None where no site has a figure.

    A line joins the two dots of a site. `what` names the sites, in plain text.
    """
    levels = [level for one in sites for level in one.levels_db]
    if not levels:
        return None
    x = list(range(len(sites)))
    traces: list[object] = []
    joined = [(at, one) for at, one in zip(x, sites) if one.gain_db is not None]
    if joined:
        traces.append(
            go.Scatter(
                x=[at for at, _ in joined for _ in range(3)],
                y=[level for _, one in joined for level in (one.before_db, one.after_db, None)],
                mode="lines",
                line={"width": 1, "color": "rgba(128,140,150,0.6)"},
                hoverinfo="skip",
            )
        )
    size_px = 8 if len(sites) <= 60 else 5
    # The ring is larger than the dot, so that both are seen where nothing changed.
    for mark, part, wide_px in ((BEFORE, "before_db", size_px + 3), (AFTER, "after_db", size_px)):
        shown = [(at, one, getattr(one, part)) for at, one in zip(x, sites) if getattr(one, part) is not None]
        if shown:
            traces.append(
                go.Scatter(
                    x=[at for at, _, _ in shown],
                    y=[level for _, _, level in shown],
                    mode="markers",
                    marker={**mark.marker(wide_px), "line": {"width": 1.5, "color": mark.color}},
                    customdata=[_told(one) for _, one, _ in shown],
                    hovertemplate="%{customdata}<extra></extra>",
                )
            )
    unit, ticks = _ticks([one.site for one in sites])
    worst = min((one for one in sites if one.after_db is not None), key=lambda one: one.after_db or 0.0, default=None)
    said = "" if worst is None else f" The lowest is {decibels(worst.after_db)} dB at {worst.site}"
    said += "" if worst is None or worst.before_db is None else f", {decibels(worst.before_db)} dB before"
    title = f"{chart_text(what)} in order of execution" + (f", by {chart_text(unit, 24)}" if unit else "")
    margin = 0.06 * (max(levels) - min(levels)) or 1.0
    return plot(
        traces,
        place=place,
        alt=f"Signal-to-quantization-noise ratio of what reads {len(sites)} {what}.{said}.",
        height_px=HEIGHT_PX,
        layout={
            "xaxis": axis(
                title,
                range=[-0.8, len(sites) - 0.2],
                tickvals=[at - 0.5 for at, _ in ticks],
                ticktext=[chart_text(text, 12) for _, text in ticks],
                tickangle=0,
            ),
            "yaxis": axis("SQNR, dB", range=[min(levels) - margin, max(levels) + margin], nticks=7),
            "hovermode": "closest",
        },
    )


def _told(one: SiteChange) -> str:
    lines = [f"<b>{chart_text(one.site, 200)}</b>"]
    if one.before_db is not None:
        lines.append(f"{decibels(one.before_db)} dB before, {decibels(one.after_db)} dB after")
    else:
        lines.append(f"{decibels(one.after_db)} dB")
    return "<br>".join(lines + ([f"{chart_text(one.bits)} bits"] if one.bits else []))


def _ticks(names: Sequence[str]) -> tuple[str, list[tuple[int, str]]]:
    """Return what is numbered (`layer`), and where each block of it starts, with its number; thinned out."""
    starts, at = [], 0
    for label, count in blocks(names):
        starts.append((at, *label.rpartition(".")[::2]))
        at += count
    kinds = Counter(kind for _, kind, number in starts if kind and number.isdigit())
    if not kinds:
        return "", []
    unit = kinds.most_common(1)[0][0]
    found = [(at, number) for at, kind, number in starts if kind == unit and number.isdigit()]
    return unit, found[:: -(-len(found) // MOST_TICKS)]
