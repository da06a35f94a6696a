"""Accuracy against the budget of one attack: a line per variant from the clean figure on, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from seatrial.core.noise import epsilon_size
from seatrial.report.intervals import Reach, whiskers
from seatrial.report.marks import Mark
from seatrial.report.markup import chart_text
from seatrial.report.noise_rows import CLEAN
from seatrial.report.plot import Plot, axis, plot
from seatrial.report.severity_chart import order
from seatrial.report.subject import Variant
from seatrial.report.wording import figure, finite, metric_name, span

HEIGHT_PX = 236
DODGE = 0.07
"""How far apart variants stand at one epsilon, in mean steps between epsilons."""
_METRIC = "top1"


def epsilon_places(epsilons: Sequence[str]) -> list[float]:
    """Return where sorted epsilons stand on the axis: by their logarithm from 1 on, a mean step being 1.

    Zero is where the clean figure stands. Epsilons that have no logarithm make all of them stand one step apart.
    """
    logs = [math.log(size) if (size := epsilon_size(text)) is not None and size > 0 else None for text in epsilons]
    known = [log for log in logs if log is not None]
    if len(known) < max(2, len(logs)) or known[-1] == known[0]:
        return [float(1 + place) for place in range(len(epsilons))]
    step = (known[-1] - known[0]) / (len(known) - 1)
    return [1 + (log - known[0]) / step for log in known]


def epsilon_curves(
    cells: Mapping[int, Sequence[Mapping[str, Any]]],
    variants: Sequence[Variant],
    drawn: Sequence[Mark],
    *,
    ends: tuple[float, float],
    place: str,
    about: str,
) -> Plot:
    """Return the chart of one attack: `cells` (of the JSON) by variant, `ends` of the vertical axis in percent.

    Lines begin at the clean figure on the attacked samples. `about` (plain text) begins the alternative text. A cell
    without a figure leaves a gap in the line.
    """
    epsilons = sorted({str(cell["severity"]) for row in cells.values() for cell in row}, key=order)
    places = [0.0, *epsilon_places(epsilons)]
    names = [CLEAN, *epsilons]
    traces, said = [], []
    for among, index in enumerate(sorted(cells)):
        # Variants that agree would cover each other.
        shift = DODGE * (among - (len(cells) - 1) / 2)
        variant, mark = variants[index], drawn[index]
        known = {str(cell["severity"]): _reach(cell) for cell in cells[index]}
        clean = next((c for c in (finite(cell["clean"]) for cell in cells[index]) if c is not None), None)
        line: list[Reach] = [(clean, None, None), *(known.get(name, (None, None, None)) for name in epsilons)]
        figures = ", ".join(f"{n} {figure(r[0], _METRIC)}" for n, r in zip(names, line) if r[0] is not None)
        said.append(f"{variant.title}: {figures}")
        traces.append(
            go.Scatter(
                x=[x + shift for x in places],
                y=[None if reach[0] is None else 100 * reach[0] for reach in line],
                mode="lines+markers",
                line={"color": mark.color, "width": 1.5},
                marker=mark.marker(6),
                error_y=whiskers(line, mark.color, scale=100.0, thickness=1),
                customdata=[_hover(variant, about, name, reach) for name, reach in zip(names, line)],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    ticks = [chart_text(name, 16) for name in names]
    x = axis("ε", tickvals=places, ticktext=ticks, tickangle=0, range=[-0.4, places[-1] + 0.4], showgrid=False)
    y = axis(f"{metric_name(_METRIC)}, %", range=list(ends), nticks=5)
    return plot(
        traces,
        place=place,
        alt=f"{about}. {'; '.join(said)}.",
        height_px=HEIGHT_PX,
        layout={"xaxis": x, "yaxis": y, "hovermode": "closest"},
    )


def _reach(cell: Mapping[str, Any]) -> Reach:
    return finite(cell["value"]), finite(cell["low"]), finite(cell["high"])


def _hover(variant: Variant, about: str, name: str, reach: Reach) -> str:
    value, low, high = reach
    if value is None:
        return ""
    interval = span(low, high, _METRIC)
    text = f"{name}: {figure(value, _METRIC)}" + (f" ({interval})" if interval else "")
    return f"<b>{chart_text(variant.title)}</b><br>{chart_text(about)}<br>{chart_text(text)}"
