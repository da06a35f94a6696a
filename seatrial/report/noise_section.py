"""How the variants behave under noise: charts by family, what was not measured and why, and every cell as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from seatrial.core.noise import Family, NoiseSpec
from seatrial.report.intervals import ends
from seatrial.report.marks import Mark, key
from seatrial.report.markup import details, escaped, table
from seatrial.report.noise_rows import Row, clean_cell, row_chart
from seatrial.report.plot import Plot
from seatrial.report.severity_chart import severity_chart
from seatrial.report.subject import FAMILIES, NoiseCell, Variant
from seatrial.report.wording import ABSENT, condition, figure, is_share, metric_name, noise_title, span

TITLES: dict[Family, tuple[str, str]] = {
    "attack": ("Attacks", "Pictures changed on purpose, within a budget ε, until the model errs."),
    "corruption": ("Corruptions", "Pictures as bad light, optics, sensors and compression leave them."),
    "system": ("System differences", "The same pictures through another decoder, filter or arithmetic."),
}


def noise_section(variants: Sequence[Variant], drawn: Sequence[Mark]) -> tuple[str, list[str]]:
    """Return the section's HTML and the scripts of its charts; a sentence where no noise was asked for."""
    families: list[Family] = [
        family for family in FAMILIES if any(cell.spec.family == family for v in variants for cell in v.cells)
    ]
    if not families:
        return '<p class="quiet">This run was asked without noise: <code>--noise quick</code> adds some.</p>', []
    parts, scripts = [], []
    for family in families:
        html, more = _family(family, variants, drawn)
        parts.append(html)
        scripts += more
    every = [
        [
            escaped(v.title),
            escaped(c.spec.family),
            escaped(c.spec.name),
            escaped(condition(c.spec)) or ABSENT,
            escaped(c.access) if c.access else ABSENT,
            escaped(metric_name(c.metric)),
            escaped(figure(c.value, c.metric)),
            escaped(span(c.low, c.high, c.metric)) or ABSENT,
            ABSENT if c.n is None else f"{c.n:,}",
            escaped(c.status) + (f": {escaped(c.reason)}" if c.reason else ""),
        ]
        for v in variants
        for c in v.cells
    ]
    heads = [
        "variant",
        "family",
        "noise",
        "condition",
        "access",
        "metric",
        "value",
        "95\N{NO-BREAK SPACE}% interval",
        "n",
        "status",
    ]
    listed = table(heads, every, caption="Every variant under every noise", numeric=(6, 7, 8))
    return "".join(parts) + details(f"All {len(every)} figures as a table", listed), scripts


def _family(family: Family, variants: Sequence[Variant], drawn: Sequence[Mark]) -> tuple[str, list[str]]:
    title, about = TITLES[family]
    asked = [i for i, v in enumerate(variants) if any(cell.spec.family == family for cell in v.cells)]
    shown, symbols = [variants[i] for i in asked], [drawn[i] for i in asked]
    parts = [f'<section class="family" aria-labelledby="noise-{family}"><h3 id="noise-{family}">{title}</h3>']
    parts.append(f"<p>{about} Lines show 95\N{NO-BREAK SPACE}% intervals.</p>{key(shown, symbols)}")
    scripts = []
    metrics = dict.fromkeys(cell.metric for v in shown for cell in v.cells if cell.spec.family == family)
    for number, metric in enumerate(metrics):
        cells = {i: [c for c in variants[i].cells if c.spec.family == family and c.metric == metric] for i in asked}
        curves, rest = _split(cells)
        place = f"chart-{family}" + (f"-{number}" if number else "")
        every = [cell for row in cells.values() for cell in row]
        every += [clean_cell(v) for v in shown if v.metric == metric]
        if curves:
            reach = ends([c.reach for c in every if c.done], scale=100.0 if is_share(metric) else 1.0)
            parts.append('<div class="facets">')
            for count, (name, group) in enumerate(curves.items()):
                chart = severity_chart(group, variants, drawn, ends=reach, place=f"{place}-curve-{count}", about=name)
                parts.append(_figure(chart, name))
                scripts.append(chart.script)
            parts.append("</div>")
        if rest:
            clean = {i: clean_cell(variants[i]) for i in asked if variants[i].metric == metric}
            rows = [Row("clean, no noise", clean)] if clean else []
            rows += [Row(name, group) for name, group in rest.items()]
            name = f"{title}: {metric_name(metric)} under each condition"
            chart = row_chart(rows, variants, drawn, metric=metric, place=place, about=f"{name}.")
            parts.append(_figure(chart, name))
            scripts.append(chart.script)
    parts.append(_missing(family, shown))
    return "".join(parts) + "</section>", scripts


def _figure(chart: Plot, title: str) -> str:
    return f"<figure><figcaption>{escaped(title)}</figcaption>{chart.html}</figure>"


def _split(
    cells: Mapping[int, Sequence[NoiseCell]],
) -> tuple[dict[str, dict[int, list[NoiseCell]]], dict[str, dict[int, NoiseCell]]]:
    """Part the noises asked at several severities (by noise) from those asked at one (by condition), by their titles.

    Where one variant answers the same question under several kinds of access, each kind stands by itself.
    """
    counts = Counter((i, cell.spec) for i, row in cells.items() for cell in row)
    twice = {spec for (_, spec), count in counts.items() if count > 1}
    asked = [(i, cell, cell.access if cell.spec in twice else None) for i, row in cells.items() for cell in row]
    severities: dict[tuple[NoiseSpec, str | None], set[int | str | None]] = {}
    for _, cell, access in asked:
        severities.setdefault((replace(cell.spec, severity=None), access), set()).add(cell.spec.severity)
    curves: dict[str, dict[int, list[NoiseCell]]] = {}
    rest: dict[str, dict[int, NoiseCell]] = {}
    for i, cell, access in asked:
        noise = replace(cell.spec, severity=None)
        kind = f", {access}" if access else ""
        if len(severities[noise, access]) > 1:
            curves.setdefault(noise_title(noise) + kind, {}).setdefault(i, []).append(cell)
        else:
            rest.setdefault(noise_title(cell.spec) + kind, {})[i] = cell
    return curves, rest


def _missing(family: Family, variants: Sequence[Variant]) -> str:
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for variant in variants:
        for cell in variant.cells:
            if cell.spec.family == family and not cell.done:
                status = "no figure" if cell.status == "done" else cell.status.replace("-", " ")
                why = (noise_title(cell.spec), status, cell.reason or "no reason given")
                reasons.setdefault(why, []).append(variant.title)
    if not reasons:
        return ""
    rows = "".join(
        f'<li><b>{escaped(noise)}</b> <span class="status">{escaped(status)}</span> {escaped(reason)} '
        f'<span class="quiet">({escaped(", ".join(who))})</span></li>'
        for (noise, status, reason), who in reasons.items()
    )
    return f'<h4>Without a figure</h4><ul class="missing">{rows}</ul>'
