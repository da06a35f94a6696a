"""The combined drop as a waterfall: the clean figure, then what each further system noise takes or gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from seatrial.report.marks import COLORS
from seatrial.report.markup import chart_text
from seatrial.report.plot import QUIET, Plot, axis, plot
from seatrial.report.wording import change, figure

ROW_PX, AXIS_PX = 27, 52
LOSS, GAIN = COLORS[1], COLORS[2]
_METRIC = "top1"


def chain_chart(
    clean: float, steps: Sequence[Mapping[str, Any]], *, ends: tuple[float, float], place: str, about: str
) -> Plot:
    """Return a bar per step from the figure before it to the figure after it, top-1 in percent.

    `steps` (of the JSON) hold `noise`, `option` and `value`, a fraction; `ends` are those of the axis. `about` (plain
    text) begins the alternative text.
    """
    values = [clean, *(float(step["value"]) for step in steps)]
    changes = [after - before for before, after in pairwise(values)]
    names = ["clean", *(f"+ {step['noise']} {step['option']}" for step in steps)]
    bars = go.Bar(
        base=[100 * min(before, after) for before, after in pairwise(values)],
        x=[100 * abs(by) for by in changes],
        y=list(range(1, len(values))),
        orientation="h",
        width=0.56,
        marker={"color": [LOSS if by < 0 else GAIN for by in changes], "cornerradius": 2},
        text=[change(by, _METRIC) for by in changes],
        textposition="outside",
        textfont={"size": 11},
        cliponaxis=False,
        customdata=[
            f"<b>{chart_text(name)}</b><br>{figure(value, _METRIC)}, {change(by, _METRIC)} points"
            for name, value, by in zip(names[1:], values[1:], changes)
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )
    # Each figure is carried down to the bar that begins there.
    links = [
        {"type": "line", "x0": 100 * value, "x1": 100 * value, "y0": row + 0.28, "y1": row + 0.72, "layer": "below"}
        | {"line": {"color": QUIET, "width": 1}}
        for row, value in enumerate(values[:-1])
    ]
    first = go.Scatter(
        x=[100 * clean],
        y=[0],
        mode="markers+text",
        marker={"color": COLORS[0], "symbol": "diamond", "size": 8},
        text=[f"  {figure(clean, _METRIC)}"],
        textposition="middle right",
        textfont={"size": 11},
        cliponaxis=False,
        hoverinfo="skip",
    )
    said = "; ".join(f"{name}: {figure(value, _METRIC)}" for name, value in zip(names, values))
    room = 0.12 * (ends[1] - ends[0])  # for the texts right of the bars
    y = axis("", tickvals=list(range(len(values))), ticktext=[chart_text(name, 34) for name in names], showgrid=False)
    return plot(
        [bars, first],
        place=place,
        alt=f"{about}. {said}.",
        height_px=ROW_PX * len(values) + AXIS_PX,
        layout={
            "xaxis": axis("top-1, %", range=[ends[0], ends[1] + room], nticks=6),
            "yaxis": {**y, "range": [len(values) - 0.5, -0.5]},
            "shapes": links,
            "margin": {"l": 8, "r": 14, "t": 0, "b": AXIS_PX},
            "hovermode": "closest",
        },
    )
