"""The page about two runs: differences with intervals, latencies, the samples that turned, and the two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from seatrial.report.appendix import machine, subject
from seatrial.report.frame import frame
from seatrial.report.intervals import ends, whiskers
from seatrial.report.marks import COLORS
from seatrial.report.markup import bullets, chart_text, details, escaped, shortened, table
from seatrial.report.plot import Plot, axis, plot
from seatrial.report.wording import change, change_span, figure, metric_name, milliseconds, ratio

ROW_PX, AXIS_PX = 42, 52
TITLE_CHARACTERS = 52


def compare_page(comparison: Mapping[str, Any], result_a: Mapping[str, Any], result_b: Mapping[str, Any]) -> str:
    """Return the comparison (as `compare` makes it) as one self-contained page; equal arguments give equal bytes."""
    pairs: Sequence[Mapping[str, Any]] = comparison["pairs"]
    title = verdict(pairs)
    names = f"A: {comparison['a'] or 'unnamed'} · B: {comparison['b'] or 'unnamed'}"
    scripts, body = [], []
    body.append(
        f'<header><p class="eyebrow">seatrial comparison · {escaped(names)}</p><h1>{escaped(title)}</h1>'
        '<div class="lead"><p>Every difference is B minus A, over the samples that both runs answered.</p></div>'
        "</header>"
    )
    body.append('<section id="differences"><h2>Differences</h2>')
    if pairs:
        chart = difference_chart(pairs, place="chart-differences")
        scripts.append(chart.script)
        body.append(
            "<p>Points: difference in accuracy; lines: its 95\N{NO-BREAK SPACE}% interval. "
            "An interval that leaves out zero is filled.</p>"
            f"<figure>{chart.html}</figure>{_table(pairs)}"
        )
    else:
        body.append('<p class="quiet">The runs answered no question in common.</p>')
    body.append("</section>")
    body.append(f'<section id="latency"><h2>Latency</h2>{_latency(comparison["latency"])}</section>')
    body.append(f'<section id="turned"><h2>Samples that turned</h2>{_turned(pairs)}</section>')
    body.append('<section id="runs"><h2>The two runs</h2>')
    for name, result in (("A", result_a), ("B", result_b)):
        parts = "".join(subject(part, result.get(part.lower())) for part in ("Model", "Data", "Calibration"))
        more = f"<h3>Machine</h3>{machine(result.get('machine'))}"
        body.append(details(f"Run {name}: model, data and machine", parts + more))
    for name in ("a", "b"):
        if comparison[f"only_{name}"]:
            body.append(f"<h3>Answered by {name.upper()} only</h3>{bullets(comparison[f'only_{name}'], '')}")
    warnings = comparison["warnings"]
    body.append(f'</section><section id="warnings"><h2>Warnings ({len(warnings)})</h2>{bullets(warnings, "None.")}')
    body.append("</section>")
    sections = [("differences", "Differences"), ("latency", "Latency"), ("turned", "Samples"), ("runs", "Runs")]
    sections.append(("warnings", "Warnings"))
    return frame(title=f"{title} · seatrial", body="\n".join(body), scripts=scripts, sections=sections)


def sure(pair: Mapping[str, Any]) -> bool:
    """Tell whether the interval of a difference leaves out zero."""
    return pair["low"] > 0 or pair["high"] < 0


def verdict(pairs: Sequence[Mapping[str, Any]]) -> str:
    """Return the outcome in one line, about the first quantized variant on clean data."""
    if not pairs:
        return "Nothing to compare"
    clean = [pair for pair in pairs if pair["noise"] is None] or list(pairs)
    first = next((pair for pair in clean if pair["variant"].startswith("w")), clean[0])
    said = f"{first['variant']} on {first['target']}: B {change(first['difference'], first['metric'])} points"
    said += f" ({change_span(first['low'], first['high'], first['metric'])})"
    others = sum(sure(pair) for pair in pairs)
    return f"{said}; {others} of {len(pairs)} intervals leave out zero"


def difference_chart(pairs: Sequence[Mapping[str, Any]], *, place: str) -> Plot:
    """Return a point with its interval for each pair, in points of accuracy, with its title above it."""
    reaches = [(pair["difference"], pair["low"], pair["high"]) for pair in pairs]
    left, right = ends([*reaches, (0.0, None, None)], scale=100.0)
    titles = [f"{pair['variant']} on {pair['target']} · {pair['title']}" for pair in pairs]
    y = [ROW_PX * (i + 0.62) for i in range(len(pairs))]
    points = go.Scatter(
        x=[100.0 * pair["difference"] for pair in pairs],
        y=y,
        mode="markers",
        marker={
            "color": COLORS[0],
            "symbol": ["circle" if sure(pair) else "circle-open" for pair in pairs],
            "size": 9,
            "line": {"width": 2, "color": COLORS[0]},
        },
        error_x=whiskers(reaches, COLORS[0], scale=100.0),
        customdata=[
            f"<b>{chart_text(title)}</b><br>{change(p['difference'], p['metric'])} points "
            f"({change_span(p['low'], p['high'], p['metric'])}), n = {p['n']}"
            for title, p in zip(titles, pairs)
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )
    notes = [
        {
            "text": chart_text(shortened(title, TITLE_CHARACTERS)),
            "xref": "paper",
            "x": 0,
            "xanchor": "left",
            "y": ROW_PX * (i + 0.26),
            "yanchor": "middle",
            "showarrow": False,
            "font": {"size": 12},
        }
        for i, title in enumerate(titles)
    ]
    said = "; ".join(f"{title}: {change(p['difference'], p['metric'])} points" for title, p in zip(titles, pairs))
    height = ROW_PX * len(pairs)
    x = axis("difference in accuracy, points (B minus A)", range=[left, right])
    return plot(
        [points],
        place=place,
        alt=f"Differences between the runs. {said}.",
        height_px=height + AXIS_PX,
        layout={
            "xaxis": x | {"zeroline": True, "zerolinecolor": "#8a949d", "zerolinewidth": 1.5},
            "yaxis": {"range": [height, 0], "visible": False, "fixedrange": True},
            "annotations": notes,
            "margin": {"l": 6, "r": 14, "t": 0, "b": AXIS_PX},
            "hovermode": "closest",
        },
    )


def _table(pairs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{escaped(pair['variant'])} on {escaped(pair['target'])}",
            escaped(pair["title"]),
            escaped(figure(pair["a"], pair["metric"])),
            escaped(figure(pair["b"], pair["metric"])),
            escaped(change(pair["difference"], pair["metric"])),
            escaped(change_span(pair["low"], pair["high"], pair["metric"])),
            f"{pair['gained']:,}",
            f"{pair['lost']:,}",
            escaped(figure(pair["agreement"], "agreement")),
            f"{pair['n']:,}",
        ]
        for pair in pairs
    ]
    metric = metric_name(str(pairs[0]["metric"]))
    heads = ["variant", "noise", f"A {metric}", f"B {metric}", "B − A, points", "95\N{NO-BREAK SPACE}% interval"]
    heads += ["turned right", "turned wrong", "equal answers", "n"]
    caption = "Paired differences. Turned right: wrong in A, right in B."
    return table(heads, rows, caption=caption, numeric=range(2, len(heads)))


def _latency(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return '<p class="quiet">No variant was timed in both runs.</p>'
    lines = [
        [
            f"{escaped(row['variant'])} on {escaped(row['target'])}",
            escaped(milliseconds(row["a"])),
            escaped(milliseconds(row["b"])),
            escaped(ratio(row["speedup"])),
        ]
        for row in rows
    ]
    caption = "Median latency. The runs were timed apart, so small differences mean little."
    return table(["variant", "A, ms", "B, ms", "B is faster by"], lines, caption=caption, numeric=(1, 2, 3))


def _turned(pairs: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for pair in pairs:
        if not pair["flipped_total"]:
            continue
        rows = [
            [escaped(f["sample"]), f"{f['label']}", f"{f['a']}", f"{f['b']}", escaped(f["turned"])]
            for f in pair["flipped"]
        ]
        heads = ["sample", "label", "answer of A", "answer of B", "turned"]
        count, shown = pair["flipped_total"], len(pair["flipped"])
        summary = f"{pair['variant']} on {pair['target']}, {pair['title']}: {count:,}"
        summary += f", the first {shown} listed" if shown < count else ""
        parts.append(details(summary, table(heads, rows, caption="Classes by their index", numeric=(1, 2, 3))))
    return "".join(parts) or '<p class="quiet">None: every sample both runs share was right or wrong in both.</p>'
