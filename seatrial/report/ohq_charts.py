"""The charts of a search over precisions: the front, predicted against measured, and the course of the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from seatrial.report.intervals import ends
from seatrial.report.latency_chart import WIDE
from seatrial.report.marks import COLORS, HOLLOW, SHAPES, Mark
from seatrial.report.markup import chart_text, escaped
from seatrial.report.ohq_wording import Part, choice, chosen_name, float_name, median_ms, uniform_name
from seatrial.report.plot import Plot, axis, plot
from seatrial.report.wording import figure, finite, is_share, metric_name, milliseconds, significant

HEIGHT_PX = 360
MEASURED, PREDICTED, UNIFORM, CHOSEN = "measured", "predicted", "uniform", "chosen"
_SHAPES = {MEASURED: "circle", PREDICTED: HOLLOW, UNIFORM: "diamond", CHOSEN: "hexagon"}
_SIZES_PX = {MEASURED: 8.0, PREDICTED: 8.0, UNIFORM: 12.0, CHOSEN: 14.0}
_SETTING_COLORS = (COLORS[0], COLORS[2], COLORS[4], COLORS[5])
_CHOSEN_COLOR = COLORS[1]
STEPS = ("uniform", "flip", "validation", "program", "polish")
_DIAGONAL = "#8a949d"
MOST_SAID = 8


@dataclass(frozen=True)
class Point:
    """One network of a front: what it is (`measured`, `predicted`, `uniform`, `chosen`), where, and what is said."""

    kind: str
    setting: str
    x: float
    y: float
    label: str
    said: str


def settings(result: Part) -> list[str]:
    """Return what float operators ran in, in the order in which the front and the search name them."""
    found = [point["setting"] for point in (*result["pareto"], *result["search"]["steps"])]
    return list(dict.fromkeys(float_name(setting) for setting in found))


def _mark(kind: str, setting: str, among: Sequence[str]) -> Mark:
    if kind == CHOSEN:
        return Mark(_CHOSEN_COLOR, _SHAPES[kind])
    place = among.index(setting) if setting in among else len(among)
    return Mark(_SETTING_COLORS[place % len(_SETTING_COLORS)], _SHAPES[kind])


def key(rows: Sequence[tuple[Mark, str]]) -> str:
    """Return the key of a chart as HTML."""
    listed = "".join(f"<li>{mark.svg}{escaped(text, 80)}</li>" for mark, text in rows)
    return f'<ul class="key" aria-label="Key">{listed}</ul>'


def sensitivity_points(result: Part) -> list[Point]:
    """Return the front by latency (ms) and sensitivity (nats); points without a figure are left out."""
    found = []
    for entry in result["pareto"]:
        time, nats = _time_ms(entry), finite(entry["sensitivity"])
        if time is not None and nats is not None:
            found.append(_front_point(result, entry, time, nats))
    return found


def answer_points(result: Part, metric: str, field: str) -> list[Point]:
    """Return latency (ms) against `agreement` or `value` where they are known: uniform precisions, front, chosen."""
    scale = 100.0 if is_share(metric) else 1.0
    found = []
    chosen = result["chosen"]
    for baseline in result["baselines"]:
        time, value = median_ms(baseline), finite(baseline[field])
        name = str(baseline["name"])
        kept = chosen["is_uniform"] and name == chosen_name(result)  # it is drawn as the chosen one
        if time is not None and value is not None and not kept:
            setting = "bf16" if name.endswith("bf16") else "float32"
            said = f"{milliseconds(time)} ms, {metric_name(metric)} {figure(value, metric)}"
            found.append(Point(UNIFORM, setting, time, scale * value, name, said))
    for entry in result["pareto"]:
        time, value = _time_ms(entry), finite(entry[field])
        point = None if time is None or value is None else _front_point(result, entry, time, scale * value)
        if point is not None and point.kind in (MEASURED, PREDICTED):
            found.append(point)
    time, value = median_ms(chosen), finite(chosen[field])
    if time is not None and value is not None:
        said = f"{milliseconds(time)} ms, {metric_name(metric)} {figure(value, metric)}"
        label = f"chosen ({chosen_name(result)})" if chosen["is_uniform"] else "chosen"
        found.append(Point(CHOSEN, float_name(chosen["setting"]), time, scale * value, label, said))
    return found


def _time_ms(entry: Part) -> float | None:
    measured = finite(entry["measured_ms"])
    return finite(entry["predicted_ms"]) if measured is None else measured


def _front_point(result: Part, entry: Part, x: float, y: float) -> Point:
    groups: Mapping[str, object] = entry["groups"]
    uniform = uniform_name(groups, entry["setting"])
    mine = choice(result) == {str(name): str(precision) for name, precision in groups.items()}
    chosen = mine and entry["setting"] == result["chosen"]["setting"]
    measured = finite(entry["measured_ms"])
    kind = CHOSEN if chosen else UNIFORM if uniform else PREDICTED if measured is None else MEASURED
    label = ("chosen" + (f" ({uniform})" if uniform else "")) if chosen else (uniform or "")
    predicted = finite(entry["predicted_ms"])
    told = [f"measured {milliseconds(measured)} ms"] if measured is not None else []
    told += [f"predicted {milliseconds(predicted)} ms"] if predicted is not None else []
    nats = finite(entry["sensitivity"])
    said = f"{', '.join(told)}; {entry['integer_groups']} of {len(groups)} groups in integers"
    said += f"; {significant(nats)} nats" if nats is not None else ""
    for field, metric in (("agreement", "agreement"), ("value", str(result["metric"] or "value"))):
        if finite(entry[field]) is not None:
            said += f"; {metric_name(metric)} {figure(finite(entry[field]), metric)}"
    return Point(kind, float_name(entry["setting"]), x, y, label, said)


def front_chart(points: Sequence[Point], among: Sequence[str], *, y_title: str, place: str) -> Plot | None:
    """Return latency against a figure, one trace for each kind of point and setting; None without points."""
    if not points:
        return None
    left, right = min(p.x for p in points), max(p.x for p in points)
    traces = []
    for kind, setting in _kinds(points):
        held = [p for p in points if (p.kind, p.setting) == (kind, setting)]
        traces.append(
            go.Scatter(
                x=[p.x for p in held],
                y=[p.y for p in held],
                mode="markers+text" if any(p.label for p in held) else "markers",
                marker=_mark(kind, setting, among).marker(_SIZES_PX[kind]),
                text=[chart_text(p.label, 30) for p in held],
                textposition=_beside(held, points, (left + right) / 2),
                cliponaxis=False,
                customdata=[_hover(p) for p in held],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    x_range = list(ends([(p.x, None, None) for p in points]))
    y_range = list(ends([(p.y, None, None) for p in points]))
    room = 0.1 * (y_range[1] - y_range[0])  # labels stand above and below their points
    wide = left > 0 and right / left > WIDE
    said = "; ".join(f"{p.label}: {p.said}" for p in points if p.label)
    return plot(
        traces,
        place=place,
        alt=f"Latency against {y_title}, {len(points)} networks. {said}.",
        height_px=HEIGHT_PX,
        layout={
            "xaxis": axis("latency, ms", **({"type": "log"} if wide else {"range": x_range})),
            "yaxis": axis(chart_text(y_title, 40), range=[y_range[0] - room, y_range[1] + room]),
            "hovermode": "closest",
        },
    )


def _hover(point: Point) -> str:
    title = point.label or point.kind
    told = "<br>".join(chart_text(line, 200) for line in point.said.split("; "))
    return f"<b>{chart_text(title)}</b>, float in {chart_text(point.setting)}<br>{told}"


def _beside(held: Sequence[Point], every: Sequence[Point], middle: float) -> list[str]:
    """Place labels towards the middle of the chart, and away from the nearest other label above or below."""
    labeled = [p for p in every if p.label]
    wide, high = (max(v) - min(v) or 1.0 for v in ([p.x for p in every], [p.y for p in every]))

    def place(point: Point) -> str:
        others = [p for p in labeled if p is not point]
        near = min(others, key=lambda p: abs(p.x - point.x) / wide + abs(p.y - point.y) / high, default=point)
        below = (near.y, -near.x) > (point.y, -point.x)
        return f"{'bottom' if below else 'top'} {'left' if point.x > middle else 'right'}"

    return [place(point) for point in held]


def _kinds(points: Sequence[Point]) -> list[tuple[str, str]]:
    order = [PREDICTED, MEASURED, UNIFORM, CHOSEN]
    found = list(dict.fromkeys((p.kind, p.setting) for p in points))
    return sorted(found, key=lambda kind: order.index(kind[0]))


def front_key(points: Sequence[Point], among: Sequence[str]) -> str:
    """Return the key of the charts of the front, for the kinds of points that they have."""
    several = len({p.setting for p in points}) > 1
    words = {MEASURED: "measured", PREDICTED: "predicted only", UNIFORM: "uniform precision", CHOSEN: "chosen"}
    rows: dict[tuple[Mark, str], None] = {}
    for kind, setting in _kinds(points):
        told = f", float in {setting}" if several and kind != CHOSEN else ""
        rows[_mark(kind, setting, among), words[kind] + told] = None
    return key(list(rows))


def additivity_chart(result: Part, among: Sequence[str], *, place: str) -> Plot | None:
    """Return predicted against measured times of fresh choices with the diagonal; None without any."""
    known = [
        (float_name(row["setting"]), predicted, measured)
        for row in (result["additivity"] or {}).get("assignments") or ()
        if (predicted := finite(row["predicted_ms"])) is not None
        and (measured := finite(row["measured_ms"])) is not None
    ]
    if not known:
        return None
    low, high = ends([(predicted, measured, None) for _, predicted, measured in known])
    traces: list[object] = [
        go.Scatter(
            x=[low, high],
            y=[low, high],
            mode="lines",
            line={"color": _DIAGONAL, "width": 1.2, "dash": "dot"},
            hoverinfo="skip",
        )
    ]
    for setting in dict.fromkeys(setting for setting, _, _ in known):
        held = [(predicted, measured) for own, predicted, measured in known if own == setting]
        traces.append(
            go.Scatter(
                x=[predicted for predicted, _ in held],
                y=[measured for _, measured in held],
                mode="markers",
                marker=_mark(MEASURED, setting, among).marker(8),
                customdata=[
                    f"float in {chart_text(setting)}<br>predicted {milliseconds(predicted)} ms"
                    f"<br>measured {milliseconds(measured)} ms"
                    for predicted, measured in held
                ],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    said = "; ".join(f"{milliseconds(p)} ms predicted, {milliseconds(m)} ms measured" for _, p, m in known[:MOST_SAID])
    return plot(
        traces,
        place=place,
        alt=f"Predicted against measured latency of {len(known)} networks. {said}.",
        height_px=HEIGHT_PX,
        layout={
            "xaxis": axis("predicted, ms", range=[low, high]),
            "yaxis": axis("measured, ms", range=[low, high]),
            "hovermode": "closest",
        },
    )


def additivity_key(result: Part, among: Sequence[str]) -> str:
    """Return the key of the chart of predictions, '' where one setting needs none."""
    own = dict.fromkeys(float_name(row["setting"]) for row in result["additivity"]["assignments"])
    return key([(_mark(MEASURED, name, among), f"float in {name}") for name in own]) if len(own) > 1 else ""


def _step_mark(step: str) -> Mark:
    place = STEPS.index(step) if step in STEPS else len(STEPS)
    return Mark(COLORS[place % len(COLORS)], SHAPES[place % len(SHAPES)])


def search_chart(result: Part, *, place: str) -> Plot | None:
    """Return each measured ratio over the seconds by its step, and the best so far as a line; None without steps."""
    steps = [step for step in result["search"]["steps"] if finite(step["second"]) is not None]
    if not any(finite(step["ratio"]) is not None for step in steps):
        return None
    traces: list[object] = []
    for name in dict.fromkeys(str(step["step"]) for step in steps):
        held = [step for step in steps if str(step["step"]) == name and finite(step["ratio"]) is not None]
        traces.append(
            go.Scatter(
                x=[step["second"] for step in held],
                y=[step["ratio"] for step in held],
                mode="markers",
                marker={**_step_mark(name).marker(6), "opacity": 0.75},
                customdata=[
                    f"<b>{chart_text(name)}</b>, float in {chart_text(float_name(step['setting']))}"
                    f"<br>ratio {significant(step['ratio'])}<br>at {step['second']:.0f} s"
                    for step in held
                ],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    for setting in dict.fromkeys(step["setting"] for step in steps):
        held = [step for step in steps if step["setting"] == setting and finite(step["best"]) is not None]
        traces.append(
            go.Scatter(
                x=[step["second"] for step in held],
                y=[step["best"] for step in held],
                mode="lines",
                line={"color": _DIAGONAL, "width": 2, "shape": "hv"},
                hoverinfo="skip",
            )
        )
    last = finite(steps[-1]["best"])
    said = f" The best ends at {significant(last)}." if last is not None else ""
    return plot(
        traces,
        place=place,
        alt=f"Time over that of uniform int8, {len(steps)} measurements of the search.{said}",
        height_px=HEIGHT_PX,
        layout={
            "xaxis": axis("seconds of the search", rangemode="tozero"),
            "yaxis": axis("time over uniform int8's"),
            "hovermode": "closest",
        },
    )


def search_key(result: Part) -> str:
    """Return the key of the steps of the search; the line is explained by the text."""
    return key([(_step_mark(s), s) for s in dict.fromkeys(str(step["step"]) for step in result["search"]["steps"])])
