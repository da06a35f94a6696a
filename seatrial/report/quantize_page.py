"""The report of `seatrial quantize`: one HTML page about what was lost where, and what the method changed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from seatrial.bench.atomic import write_whole
from seatrial.report.appendix import machine, subject
from seatrial.report.frame import frame
from seatrial.report.markup import bullets, details, escaped, pairs, table
from seatrial.report.ohq_tables import NBSP
from seatrial.report.range_chart import extent, range_chart, range_key, unevenness, width
from seatrial.report.site_course import SiteChange, course_chart, course_key, decibels, signed_db, site_changes
from seatrial.report.subject import named
from seatrial.report.wording import figure, finite, metric_name, milliseconds, ratio, significant, size

PLAIN = "nearest"
"""The method that others are held against."""
MOST_CHARTS = 36
"""Charts of channels on one page: those that were widest, where there are more places."""
_NAME_CHARACTERS = 32

Part = Mapping[str, Any]


def write_quantize(result: Part, path: Path) -> Path:
    """Write the page as one self-contained HTML file in one step, and return its path.

    `result` is the JSON of the command, docs/json.md. Raises OSError where the folder refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, render_quantize(result).encode("utf-8"))
    return path


def render_quantize(result: Part) -> str:
    """Return the page; equal arguments give equal bytes."""
    sites = site_changes(result.get("sites") or ())
    places: Sequence[Part] = result.get("channel_ranges") or ()
    warnings = list(result.get("warnings") or ())
    site_html, scripts = _site_section(sites, str(result.get("method")))
    parts = [("sites", "Sites", "Quantization error by site", site_html)]
    if places:
        html, more = _range_section(places)
        scripts = scripts + more
        parts.append(("channels", "Channels", "Channels before and after", html))
    if result.get("variants"):
        parts.append(("variants", "Variants", "Variants", _variant_table(result["variants"])))
    parts += [
        ("run", "Run", "Model and run", _run_section(result)),
        ("machine", "Machine", "Machine", machine(result.get("machine"))),
        ("warnings", "Warnings", f"Warnings ({len(warnings)})", bullets(warnings, "None.")),
    ]
    body = [_header(result, sites, places, len(warnings))]
    body += [f'<section id="{place}"><h2>{head}</h2>{html}</section>' for place, _, head, html in parts]
    return frame(
        title=f"{named(result.get('model'))}: {_title(result)} · seatrial",
        body="\n".join(body),
        scripts=scripts,
        sections=[(place, link) for place, link, _, _ in parts],
    )


def gained(sites: Sequence[SiteChange]) -> str:
    """Return in one sentence what a method gains over plain rounding, '' where no site has both figures."""
    gains = [one.gain_db for one in sites if one.gain_db is not None]
    if not gains:
        return ""
    both = [one for one in sites if one.gain_db is not None]
    before, after = (
        min(level or 0.0 for level in levels) for levels in zip(*((s.before_db, s.after_db) for s in both))
    )
    return (
        f"Against {PLAIN}, the signal-to-noise ratio of what reads a site changes by {signed_db(median(gains))} "
        f"(median of {len(gains):,} sites). The lowest is {decibels(before)} dB before and {decibels(after)} dB after."
    )


def narrowed(places: Sequence[Part]) -> str:
    """Return in one sentence what migrations did to the ranges of channels, '' where there is none."""
    if not places:
        return ""
    wide = [significant(median(width(told[when]) for told in places)) for when in ("before", "after")]
    uneven = [
        [value for told in places if (value := finite(told[when].get("widest_over_median"))) is not None]
        for when in ("before", "after")
    ]
    ratios = [ratio(median(values)) if values else "unknown" for values in uneven]
    where = "1 place" if len(places) == 1 else f"{len(places)} places (medians)"
    return (
        f"At {where} the range of the tensor went from {wide[0]} to {wide[1]}, its widest channel from {ratios[0]} to "
        f"{ratios[1]} the median one."
    )


def _title(result: Part) -> str:
    name = f"{result.get('bits')} on {result.get('target')}"
    value, metric = finite(result.get("value")), str(result.get("metric") or "value")
    return name if value is None else f"{name}: {metric_name(metric)} {figure(value, metric)}"


def _together(html: str) -> str:
    """Keep figures and their units on one line."""
    return re.sub(r"(?<=\d) (?=(?:ms|dB|points|places|sites)\b|%)", NBSP, html)


def _header(result: Part, sites: Sequence[SiteChange], places: Sequence[Part], warnings: int) -> str:
    method = str(result.get("method"))
    eyebrow = " · ".join(text for text in (f"seatrial quantize, method {method}", named(result.get("model"))) if text)
    said = "".join(f"<p>{_together(escaped(text))}</p>" for text in (gained(sites), narrowed(places)) if text)
    if warnings:
        said += f'<p>The run recorded <a href="#warnings">{warnings} warning{"" if warnings == 1 else "s"}</a>.</p>'
    return (
        f'<header><p class="eyebrow">{escaped(eyebrow, 300)}</p><h1>{_together(escaped(_title(result), 300))}</h1>'
        f'<div class="lead">{said}</div>{_tiles(result)}</header>'
        "<noscript><section><p>The charts need JavaScript; the tables hold the same figures.</p></section></noscript>"
    )


def _tiles(result: Part) -> str:
    metric, latency = str(result.get("metric") or "value"), result.get("latency_ms") or {}
    time, compared = finite(latency.get("median")), (result.get("ratio") or {}).get("value")
    shown = [
        (metric_name(metric).capitalize(), figure(finite(result.get("value")), metric), finite(result.get("value"))),
        (f"{metric_name(metric).capitalize()} against float", ratio(finite(compared)), finite(compared)),
        ("Equal answers", figure(finite(result.get("agreement")), "agreement"), finite(result.get("agreement"))),
        ("Latency", f"{milliseconds(time)} ms", time),
        ("Size", size(finite(result.get("size_bytes"))), finite(result.get("size_bytes"))),
    ]
    html = "".join(
        f'<div><dt>{escaped(name)}</dt><dd class="big">{escaped(big)}</dd></div>'
        for name, big, known in shown
        if known is not None
    )
    return f'<dl class="tiles">{html}</dl>' if html else ""


def _site_section(sites: Sequence[SiteChange], method: str) -> tuple[str, list[str]]:
    compared = any(one.before_db is not None for one in sites)
    html, scripts = [], []
    for place, head, what, chosen in (
        ("chart-activations", "Activations", "activation sites", [one for one in sites if not one.is_weight]),
        ("chart-weights", "Weights", "weights", [one for one in sites if one.is_weight]),
    ):
        chart = course_chart(chosen, place=place, what=what)
        if chart is not None:
            html.append(f"<figure><figcaption>{head}</figcaption>{chart.html}</figure>")
            scripts.append(chart.script)
    about = (
        "Each site is rounded alone, and what its readers compute is compared with what they compute without: the "
        "power of the signal over that of the difference (SQNR). Higher is better."
    )
    if compared:
        about += (
            " Readers compute the same before and after a migration. A tensor's own ratio, in the table, has another "
            "signal there: outliers make it high, whatever they do to the other channels. Methods that look at a block "
            "or at the loss may give up some of this ratio at single sites."
        )
    whens = [PLAIN, method] if compared else [""]
    heads = ["site", "bits"]
    heads += [", ".join(part for part in (what, when, "dB") if part) for what in ("readers", "own") for when in whens]
    rows = []
    for one in sites:
        levels = [one.before_db, one.after_db, one.own_before_db, one.own_after_db]
        told = [decibels(level) for level in (levels if compared else levels[1::2])]
        rows.append([f"<code>{escaped(one.site)}</code>", escaped(one.bits), *told])
    listed = table(heads, rows, caption="Every site, in order of execution", numeric=range(1, len(heads)))
    charts = "".join(html) or '<p class="quiet">No site has a figure.</p>'
    key = course_key(method, PLAIN if compared else None) if html else ""
    folded = details(f"All {len(sites):,} sites as a table", listed) if sites else ""
    return f"<p>{escaped(about)}</p>{key}{charts}{folded}", scripts


def _range_section(places: Sequence[Part]) -> tuple[str, list[str]]:
    drawn = sorted(range(len(places)), key=lambda at: -width(places[at]["before"]))[:MOST_CHARTS]
    html, scripts = [], []
    for at in sorted(drawn):
        told = places[at]
        chart = range_chart(told, place=f"chart-channels-{at}")
        if chart is None:
            continue
        ranges = f"{extent(told['before'])} \N{RIGHTWARDS ARROW} {extent(told['after'])}"
        html.append(
            f"<figure><figcaption>{escaped(_short(str(told['place'])))}</figcaption>"
            f'<small class="quiet">{escaped(ranges)}</small>{chart.html}</figure>'
        )
        scripts.append(chart.script)
    together = max(int(finite(told.get("channels_per_entry")) or 1) for told in places)
    about = [
        "The lowest and highest value of each channel of what is read behind each place that was migrated, over the "
        "calibration data, in the float network and in the migrated one. Both compute the same."
    ]
    if together > 1:
        about.append(f"Up to {together} neighbors share one step, which holds the ranges of all of them.")
    if len(html) < len(places):
        about.append(f"Drawn are the {len(html)} widest of {len(places):,} places.")
    rows = [
        [
            f"<code>{escaped(told['place'])}</code>",
            escaped(told.get("channels")),
            *(text(told[when]) for text in (extent, unevenness) for when in ("before", "after")),
        ]
        for told in places
    ]
    heads = ["place", "channels", "before", "after", "widest over median, before", "after"]
    listed = table(heads, rows, caption="Range of the tensor, and how uneven its channels are", numeric=range(1, 6))
    return (
        f'<p>{escaped(" ".join(about))}</p>{range_key()}<div class="facets">{"".join(html)}</div>'
        + details(f"All {len(places):,} places as a table", listed),
        scripts,
    )


def _short(place: str) -> str:
    """Return the end of the module's path, which holds its numbers; of a place without a path the operator."""
    operator = place.removesuffix(":output")
    path = operator.rpartition("/")[0] or operator
    if len(path) <= _NAME_CHARACTERS:
        return path
    _, dot, rest = path[-_NAME_CHARACTERS:].partition(".")
    # The joiner keeps a line from breaking behind the ellipsis.
    return "\N{HORIZONTAL ELLIPSIS}\N{WORD JOINER}" + (rest if dot else path[-_NAME_CHARACTERS:])


def _variant_table(variants: Sequence[Part]) -> str:
    metric = str(variants[0].get("metric") or "value")
    rows = []
    for told in variants:
        compared = told.get("ratio")
        same = ratio(finite(compared.get("value"))) if compared else figure(finite(told.get("agreement")), "agreement")
        latency = finite((told.get("latency_ms") or {}).get("median"))
        figures = [
            size(finite(told.get("size_bytes"))),
            milliseconds(latency),
            figure(finite(told.get("value")), metric),
        ]
        rows.append([escaped(f"{told.get('name')}@{told.get('target')}"), *figures, same])
    against = "against float" if variants[0].get("ratio") else "equal answers"
    heads = ["variant", "size", "latency, ms", metric_name(metric), against]
    return table(heads, rows, caption="Float and quantized, simulated and deployed", numeric=range(1, 5))


def _run_section(result: Part) -> str:
    shown = {key: result.get(key) for key in ("target", "method", "bits", "task", "calibration") if result.get(key)}
    seconds = finite(result.get("seconds"))
    shown["seconds"] = None if seconds is None else f"{seconds:.0f}"
    return (
        subject("Model", result.get("model"))
        + subject("Data", result.get("data"))
        + f"<h3>Run</h3>{pairs(shown)}<h3>Files</h3>{bullets(result.get('files') or (), 'None.')}"
    )
