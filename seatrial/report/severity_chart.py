"""Accuracy against severity of one noise: a line per variant from the clean figure on, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from seatrial.core.noise import epsilon_size
from seatrial.report.intervals import Reach, whiskers
from seatrial.report.marks import Mark
from seatrial.report.markup import chart_text
from seatrial.report.noise_rows import CLEAN, clean_cell
from seatrial.report.plot import Plot, axis, plot
from seatrial.report.subject import NoiseCell, Variant
from seatrial.report.wording import figure, is_share, metric_name, span

HEIGHT_PX = 236
DODGE = 0.09
"""How far apart variants stand at one severity, in steps of severity."""
NOTHING: Reach = (None, None, None)


def order(severity: object) -> tuple[float, str]:
    """Return what severities and epsilons are sorted by: their size, then their text; words last."""
    size = epsilon_size(severity)
    return (math.inf if size is None else size, str(severity))


def severity_chart(
    cells: Mapping[int, Sequence[NoiseCell]],
    variants: Sequence[Variant],
    drawn: Sequence[Mark],
    *,
    ends: tuple[float, float],
    place: str,
    about: str,
) -> Plot:
    """Return the chart of one noise: `cells` by variant (its place in the report), `ends` of the vertical axis.

    `about` (plain text) begins the alternative text. A cell without a figure leaves a gap in the line.
    """
    metric = next(cell.metric for row in cells.values() for cell in row)
    scale = 100.0 if is_share(metric) else 1.0
    severities = sorted({cell.spec.severity for row in cells.values() for cell in row}, key=order)
    family = next(cell.spec.family for row in cells.values() for cell in row)
    names = [CLEAN, *(str(severity) for severity in severities)]
    traces, said = [], []
    for place_among, index in enumerate(sorted(cells)):
        # Variants that agree would cover each other.
        shift = DODGE * (place_among - (len(cells) - 1) / 2)
        variant, mark = variants[index], drawn[index]
        by_severity = {cell.spec.severity: cell for cell in cells[index]}
        line = [clean_cell(variant) if variant.metric == metric else None, *(by_severity.get(s) for s in severities)]
        done = [cell if cell is not None and cell.done else None for cell in line]
        values = [None if cell is None or cell.value is None else scale * cell.value for cell in done]
        said.append(f"{variant.title}: " + ", ".join(_said(n, c) for n, c in zip(names, done) if c))
        traces.append(
            go.Scatter(
                x=[i + shift for i in range(len(names))],
                y=values,
                mode="lines+markers",
                line={"color": mark.color, "width": 1.5},
                marker=mark.marker(6),
                error_y=whiskers([c.reach if c else NOTHING for c in done], mark.color, scale=scale, thickness=1),
                customdata=[_hover(variant, about, n, c) for n, c in zip(names, done)],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    title = "ε" if family == "attack" else "severity"
    ticks = [chart_text(name, 16) for name in names]
    x = axis(title, tickvals=list(range(len(names))), ticktext=ticks, tickangle=0, range=[-0.4, len(names) - 0.6])
    y = axis(metric_name(metric) + (", %" if is_share(metric) else ""), range=list(ends), nticks=5)
    x["showgrid"] = False
    return plot(
        traces,
        place=place,
        alt=f"{about}. {'; '.join(said)}.",
        height_px=HEIGHT_PX,
        layout={"xaxis": x, "yaxis": y, "hovermode": "closest"},
    )


def _said(name: str, cell: NoiseCell) -> str:
    return f"{name} {figure(cell.value, cell.metric)}"


def _hover(variant: Variant, about: str, name: str, cell: NoiseCell | None) -> str:
    if cell is None:
        return ""
    interval = span(cell.low, cell.high, cell.metric)
    text = f"{name}: {figure(cell.value, cell.metric)}" + (f" ({interval})" if interval else "")
    return f"<b>{chart_text(variant.title)}</b><br>{chart_text(about)}<br>{chart_text(text)}"
