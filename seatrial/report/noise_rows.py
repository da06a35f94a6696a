"""Accuracy under each noise of a family as rows of points with intervals: for noises asked at one severity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from seatrial.core.noise import NoiseSpec
from seatrial.report.intervals import ends, whiskers
from seatrial.report.marks import Mark
from seatrial.report.markup import chart_text
from seatrial.report.plot import Plot, axis, plot
from seatrial.report.subject import NoiseCell, Variant
from seatrial.report.wording import figure, is_share, metric_name, span

TITLE_PX, LANE_PX, GAP_PX = 22, 15, 9
AXIS_PX = 52
CLEAN = "clean"


@dataclass(frozen=True)
class Row:
    """One condition: its title and, per variant (by place in the report), its cell."""

    title: str
    cells: Mapping[int, NoiseCell]


def clean_cell(variant: Variant) -> NoiseCell:
    """Return a variant's figure without noise in the form of a cell."""
    return NoiseCell(NoiseSpec("system", CLEAN), None, variant.metric, *variant.reach, None, "done", None)


def row_chart(
    rows: Sequence[Row], variants: Sequence[Variant], drawn: Sequence[Mark], *, metric: str, place: str, about: str
) -> Plot:
    """Return rows of points: a lane per variant, `about` (plain text) being what the alternative text begins with.

    A cell without a figure shows its status in its lane.
    """
    scale = 100.0 if is_share(metric) else 1.0
    left, right = ends([cell.reach for row in rows for cell in row.cells.values() if cell.done], scale=scale)
    traces, notes, said, y = [], [], [], 0.0
    bottoms: list[float] = []
    for row in rows:
        notes.append(_note(f"<b>{chart_text(row.title)}</b>", y + TITLE_PX / 2))
        y += TITLE_PX
        shared = _shared_status(row)
        for index in sorted(row.cells):
            cell, variant, mark = row.cells[index], variants[index], drawn[index]
            if cell.done:
                traces.append(_point(cell, variant, row.title, mark, y + LANE_PX / 2, scale))
                said.append(f"{row.title}: {variant.title} {figure(cell.value, metric)}")
            elif shared:
                # One line for all of them: six times the same words is clutter.
                notes.append(_note(f"{shared}, every variant", y + LANE_PX / 2, size=11))
                y += LANE_PX
                break
            else:
                traces.append(_absent(cell, variant, row.title, mark, y + LANE_PX / 2, left + 0.008 * (right - left)))
            y += LANE_PX
        bottoms.append(y)
        y += GAP_PX
    layout = {
        "xaxis": axis(metric_name(metric) + (", %" if is_share(metric) else ""), range=[left, right]),
        "yaxis": {"range": [y, 0], "visible": False, "fixedrange": True},
        "annotations": notes,
        "margin": {"l": 6, "r": 14, "t": 0, "b": AXIS_PX},
        "hovermode": "closest",
        "shapes": [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": bottom + GAP_PX / 2, "y1": bottom + GAP_PX / 2}
            | {"line": {"color": "rgba(128,140,150,0.22)", "width": 1}}
            for bottom in bottoms[:-1]
        ],
    }
    height = round(y) + AXIS_PX
    return plot(traces, place=place, alt=f"{about} {'; '.join(said)}.", height_px=height, layout=layout)


def _status(cell: NoiseCell) -> str:
    return "no figure" if cell.status == "done" else cell.status.replace("-", " ")


def _shared_status(row: Row) -> str | None:
    """Return the status of a row in which no variant has a figure and all have the same status."""
    found = {None if cell.done else _status(cell) for cell in row.cells.values()}
    return found.pop() if len(found) == 1 else None


def _note(text: str, y: float, size: float = 12.5) -> dict[str, object]:
    place = {"xref": "paper", "x": 0, "xanchor": "left", "yref": "y", "y": y, "yanchor": "middle"}
    return {"text": text, "showarrow": False, "align": "left", "font": {"size": size}, **place}


def _absent(cell: NoiseCell, variant: Variant, title: str, mark: Mark, y: float, left: float) -> go.Scatter:
    about = f"<b>{chart_text(variant.title)}</b><br>{chart_text(title)}<br>"
    status = _status(cell)
    return go.Scatter(
        x=[left],
        y=[y],
        mode="markers+text",
        marker={"color": mark.color, "symbol": "x-thin-open", "size": 7, "line": {"width": 1.6}},
        text=[f"  {status}"],
        textposition="middle right",
        textfont={"size": 11},
        cliponaxis=False,
        customdata=[about + chart_text(f"{status}: {cell.reason}" if cell.reason else status, 90)],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _point(cell: NoiseCell, variant: Variant, title: str, mark: Mark, y: float, scale: float) -> go.Scatter:
    interval = span(cell.low, cell.high, cell.metric)
    figures = figure(cell.value, cell.metric) + (f" ({interval})" if interval else "")
    figures += f", n = {cell.n}" if cell.n else ""
    return go.Scatter(
        x=[scale * (cell.value or 0.0)],
        y=[y],
        mode="markers",
        marker=mark.marker(8),
        error_x=whiskers([cell.reach], mark.color, scale=scale),
        customdata=[f"<b>{chart_text(variant.title)}</b><br>{chart_text(title)}<br>{chart_text(figures)}"],
        hovertemplate="%{customdata}<extra></extra>",
    )
