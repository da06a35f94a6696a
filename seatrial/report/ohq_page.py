"""The report of `seatrial quantize --method ohq`: one HTML page about a search over the precisions of a network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seatrial.bench.atomic import write_whole
from seatrial.report.appendix import machine, subject
from seatrial.report.frame import frame
from seatrial.report.markup import bullets, details, escaped, pairs, table
from seatrial.report.ohq_charts import (
    additivity_chart,
    additivity_key,
    answer_points,
    front_chart,
    front_key,
    search_chart,
    search_key,
    sensitivity_points,
    settings,
)
from seatrial.report.ohq_strip import strip
from seatrial.report.ohq_tables import NBSP, cost_tables, edge_tables, network_table
from seatrial.report.ohq_wording import (
    Part,
    chosen_name,
    float_name,
    interval,
    median_ms,
    precision_colors,
    precisions,
    sentences,
    title,
)
from seatrial.report.plot import Plot
from seatrial.report.subject import named
from seatrial.report.wording import figure, finite, metric_name, milliseconds, significant, size

GATE_SPEARMAN, GATE_MAPE = 0.9, 0.1
"""When the search trusts its model: at least this rank correlation, at most this error beyond the spread of repeats."""


def write_ohq(result: dict[str, Any], path: Path) -> Path:
    """Write the page about a search as one self-contained HTML file in one step, and return its path.

    `result` is the JSON of the command: times in ms, sizes in bytes, energy in mJ, rates as fractions, None for an
    unknown figure. A ratio is the time of the network that holds it over that of the one it is named after. Raises
    OSError where the folder refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, render_ohq(result).encode("utf-8"))
    return path


def render_ohq(result: Part) -> str:
    """Return the page; equal arguments give equal bytes."""
    front, front_scripts = _front_section(result)
    network, network_scripts = _network_section(result)
    trust, trust_scripts = _trust_section(result)
    warnings = list(result["warnings"] or ())
    parts = [
        ("networks", "Networks", "Uniform precisions and the chosen network", _networks_section(result)),
        ("front", "Front", "Fast against faithful", front),
        ("network", "Operators", "The chosen network, operator by operator", network),
        ("costs", "Costs", "What each precision costs here", _costs_section(result)),
        ("trust", "Trust", "How far to trust it", trust),
        ("run", "Run", "Model and run", _run_section(result)),
        ("machine", "Machine", "Machine", machine(result["machine"])),
        ("warnings", "Warnings", f"Warnings ({len(warnings)})", bullets(warnings, "None.")),
    ]
    body = [_header(result, len(warnings))]
    body += [f'<section id="{place}"><h2>{head}</h2>{html}</section>' for place, _, head, html in parts]
    return frame(
        title=f"{named(result['model'])}: {title(result)} · seatrial",
        body="\n".join(body),
        scripts=[*front_scripts, *network_scripts, *trust_scripts],
        sections=[(place, link) for place, link, _, _ in parts],
    )


def _together(html: str) -> str:
    """Keep figures and their units on one line."""
    return re.sub(r"(?<=\d) (?=(?:ms|points)\b|%)", NBSP, html)


def _badge(result: Part) -> str:
    """Return the mark that a figure is simulated, '' where the chip itself was measured."""
    if result["simulated"] is None:
        return ""
    return f' <span class="status">simulated: {escaped(result["simulated"], 120)}</span>'


def _header(result: Part, warnings: int) -> str:
    eyebrow = " · ".join(
        text for text in ("seatrial quantize, method ohq", named(result["model"]), str(result["target"])) if text
    )
    said = "".join(f"<p>{_together(escaped(text))}</p>" for text in sentences(result))
    if result["simulated"] is not None:
        said += f"<p>Every time on this page is simulated ({escaped(result['simulated'], 200)}), not measured.</p>"
    if warnings:
        said += f'<p>The run recorded <a href="#warnings">{warnings} warning{"" if warnings == 1 else "s"}</a>.</p>'
    return (
        f'<header><p class="eyebrow">{escaped(eyebrow, 300)}{_badge(result)}</p>'
        f'<h1>{_together(escaped(title(result), 300))}</h1><div class="lead">{said}</div>{_tiles(result)}</header>'
        "<noscript><section><p>The charts need JavaScript; the tables hold the same figures.</p></section></noscript>"
    )


def _tiles(result: Part) -> str:
    chosen, metric = result["chosen"], str(result["metric"] or "value")
    best = next((row for row in result["baselines"] if row["name"] == chosen["best_uniform"]), None)

    def beside(text: str) -> str:
        return f"{chosen['best_uniform']} {text}" if best is not None and not chosen["is_uniform"] else ""

    other: Part = best or {}
    shown: list[tuple[str, str, str]] = []
    if (time := median_ms(chosen)) is not None:
        shown.append(("Latency", f"{milliseconds(time)} ms", beside(f"{milliseconds(median_ms(other))} ms")))
    if (held := finite(result["size_bytes"])) is not None:
        shown.append(("Size", size(held), beside(size(finite(other.get("size_bytes"))))))
    if (same := finite(chosen["agreement"])) is not None:
        note = beside(figure(finite(other.get("agreement")), "agreement"))
        shown.append(("Equal answers", figure(same, "agreement"), note))
    if (value := finite(chosen["value"])) is not None:
        shown.append(
            (
                metric_name(metric).capitalize(),
                figure(value, metric),
                beside(figure(finite(other.get("value")), metric)),
            )
        )
    html = "".join(
        f'<div><dt>{escaped(name)}</dt><dd class="big">{escaped(big)}</dd>'
        f'<dd class="small">{escaped(small, 80) or "&nbsp;"}</dd></div>'
        for name, big, small in shown
    )
    return f'<dl class="tiles">{html}</dl>' if html else ""


def _figure(result: Part, caption: str, chart: Plot, above: str = "") -> str:
    return f"<figure><figcaption>{escaped(caption)}{_badge(result)}</figcaption>{above}{chart.html}</figure>"


def _networks_section(result: Part) -> str:
    counter = result["energy"]["counter"]
    energy = "" if counter is not None else "<p>This machine counts no energy.</p>"
    return f"{_badge(result)}{network_table(result)}{energy}"


def _front_section(result: Part) -> tuple[str, list[str]]:
    among, metric = settings(result), str(result["metric"] or "value")
    charts = [
        (sensitivity_points(result), "sensitivity, nats", "Sensitivity: lower and left is better", "sensitivity"),
        (
            answer_points(result, "agreement", "agreement"),
            "equal answers, %",
            "Equal answers: higher is better",
            "agreement",
        ),
    ]
    if result["metric"] is not None:
        name = metric_name(metric)
        unit = ", %" if figure(0.0, metric).endswith("%") else ""
        charts.append(
            (answer_points(result, metric, "value"), name + unit, f"{name.capitalize()}: higher is better", "value")
        )
    html, scripts, points = [], [], []
    for held, y_title, caption, place in charts:
        chart = front_chart(held, among, y_title=y_title, place=f"chart-{place}")
        if chart is not None:
            html.append(_figure(result, caption, chart))
            scripts.append(chart.script)
            points += held
    if not html:
        return '<p class="quiet">No network has both a time and a figure of its answers.</p>', []
    about = (
        "<p>Left is faster. Sensitivity is the estimated divergence from the float network, summed over the groups; "
        "equal answers and accuracy are counted on samples.</p>"
    )
    return f'{about}{front_key(points, among)}<div class="facets wide">{"".join(html)}</div>', scripts


def _network_section(result: Part) -> tuple[str, list[str]]:
    groups: Sequence[Part] = result["groups"]
    colors = precision_colors(precisions(groups))
    html, scripts = strip(groups, colors, float_name(result["chosen"]["setting"]))
    known = any(finite(group["share"]) is not None for group in groups)
    heights = "Heights: the share of the operators' time." if known else "Heights mean nothing: no share was measured."
    about = f"<p>A bar is a group of operators that share a precision, in execution order. {heights}</p>"
    return f"{about}{_badge(result)}{html}", scripts


def _costs_section(result: Part) -> str:
    about = (
        "<p>Times are what the fitted model charges to a group inside the network; the difference between two "
        "precisions counts, not the figure itself. Nats: the estimated divergence from float if this group alone is "
        "rounded.</p>"
    )
    return f"{about}{_badge(result)}{cost_tables(result)}<h3>Changes between precisions</h3>{edge_tables(result)}"


def _trust_section(result: Part) -> tuple[str, list[str]]:
    additivity, search = result["additivity"] or {}, result["search"]
    drawn, scripts = [], []
    among = settings(result)
    predicted = additivity_chart(result, among, place="chart-additivity")
    if predicted is not None:
        drawn.append(_figure(result, "Predicted against measured", predicted, additivity_key(result, among)))
        scripts.append(predicted.script)
    course = search_chart(result, place="chart-search")
    if course is not None:
        drawn.append(_figure(result, "The course of the search; line: the best so far", course, search_key(result)))
        scripts.append(course.script)
    charts = f'<div class="facets wide">{"".join(drawn)}</div>' if drawn else ""
    return f"{_gate(additivity, result['chosen']['setting'])}{charts}{_basis(result, search)}", scripts


def _gate(additivity: Part, setting: object) -> str:
    rank, error, spread = (finite(additivity.get(name)) for name in ("spearman", "mape", "repeat_spread"))
    if rank is None and error is None:
        return '<p class="quiet">The predictions of the model were not put to a test.</p>'
    trusted = additivity.get("trusted")
    outcome = "passed" if trusted else "not told" if trusted is None else "missed"
    told: Sequence[Part] = additivity.get("assignments") or ()
    count = sum(row["setting"] == setting for row in told) or len(told)
    listed = table(
        ["test of the predictions", "outcome"],
        [
            ["Rank correlation (Spearman)", escaped("–" if rank is None else significant(rank))],
            ["Mean relative error", escaped(figure(error, "agreement"))],
            ["Difference between repeats of one network", escaped(figure(spread, "agreement"))],
            ["Gate", outcome],
        ],
        caption=f"{count} networks that the model had not seen.",
        numeric=(1,),
    )
    rule = (
        f"<p>The gate: a rank correlation of at least {GATE_SPEARMAN}, and an error of at most "
        f"{100 * GATE_MAPE:.0f}{NBSP}% beyond the difference between repeats.</p>"
    )
    warned = (
        "<p>It was missed: costs of single groups are no more than a hint here, and the choice rests on what was "
        "measured.</p>"
        if trusted is False
        else ""
    )
    return f"{rule}{warned}{listed}"


def _basis(result: Part, search: Part) -> str:
    front: Sequence[Part] = result["pareto"]
    measured = sum(finite(point["measured_ms"]) is not None for point in front)
    chosen = result["chosen"]
    simulated = finite(result["agreement_simulated"])
    seconds = finite(search["seconds"])
    facts: dict[str, object] = {
        "measured in the search": f"{search['measured']} networks"
        + ("" if seconds is None else f" in {seconds:.0f} s"),
        "the search ended": search["ended"],
        "chosen against best uniform": (interval(chosen["ratio_vs_best_uniform"]).strip(" ()") or None),
        "measured points of the front": f"{measured} of {len(front)}",
        "predicted": "costs of groups and of changes between precisions, and the other points of the front",
        "estimated": "sensitivity",
        "equal answers of file and simulation": None if simulated is None else figure(simulated, "agreement"),
    }
    return f"<h3>What was measured</h3>{pairs(facts)}"


def _run_section(result: Part) -> str:
    shown = {key: result[key] for key in ("target", "method", "quantizer", "simulated", "bits")}
    shown["float operators in"] = float_name(result["chosen"]["setting"])
    shown["chosen"] = chosen_name(result)
    shown["size"] = size(finite(result["size_bytes"]))
    seconds = finite(result["seconds"])
    shown["seconds"] = None if seconds is None else f"{seconds:.0f}"
    shown["energy counter"] = result["energy"]["counter"]
    bounds = {str(key).replace("_", " "): value for key, value in result["bounds"].items()}
    bits: Part = result["chosen"]["bits"] or {}
    rows = [[f"<code>{escaped(site, 200)}</code>", escaped(value)] for site, value in bits.items()]
    sites = table(["site", "bits"], rows, caption="Bits of each site of the chosen network", numeric=(1,))
    return (
        subject("Model", result["model"])
        + f"<h3>Settings</h3>{pairs(shown)}<h3>Bounds</h3>{pairs(bounds)}"
        + f"<h3>Files</h3>{bullets(result['files'] or (), 'None.')}"
        + (details(f"Bits of all {len(rows):,} sites", sites) if rows else "")
    )
