"""The report of `seatrial robustness`: one HTML page from its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seatrial.report.appendix import machine, subject
from seatrial.report.frame import frame
from seatrial.report.markup import bullets, details, escaped, pairs, table
from seatrial.report.picture_grid import picture_grid
from seatrial.report.robustness_attacks import attack_section, masking_section
from seatrial.report.robustness_figures import Cell, as_change, asked, beneath, percent, variant_of, whose
from seatrial.report.robustness_system import (
    MOST_OPEN,
    chain_section,
    corruption_section,
    grid_section,
    system_section,
)
from seatrial.report.wording import ABSENT, finite

MOST_NAMED = 3
MOST_COLUMNS = 8
"""What a page is wide enough for, intervals included."""


def render_robustness(data: Mapping[str, Any], extras: Mapping[str, Any]) -> str:
    """Return the page; `data` is the JSON of `seatrial robustness`, `extras["pictures"]` what each noise does to one.

    Equal arguments give equal bytes. Sections without a cell are left out; cells without a figure are listed with
    their reasons.
    """
    cells, summary = list(data["cells"]), list(data["summary"])
    attacks, curves = attack_section(cells)
    chains, waterfalls = chain_section(summary)
    pictures = extras.get("pictures")
    shown = "<p>What each noise does to one picture, and what the variants answer.</p>"
    warnings = list(data["warnings"])
    silent = [cell for cell in cells if cell["status"] != "done"]
    parts = [
        ("summary", "Summary", "Summary", _summary(summary)),
        ("attacks", "Attacks", "Attacks", attacks),
        ("masking", "Masking", "Masked gradients", masking_section(data["masking"], cells)),
        ("corruptions", "Corruptions", "Corruptions", corruption_section(cells)),
        ("grid", "Grid", "Decoder by resize", grid_section(cells)),
        ("system", "System", "System noise", system_section(cells, summary)),
        ("chain", "Combined", "Combined system noise", chains),
        ("pictures", "Pictures", "Example pictures", shown + picture_grid(pictures) if pictures else ""),
        ("open", "No figure", f"Without a figure ({len(silent)})", _silent(silent)),
        ("subject", "Data", "Models and data", _subject(data)),
        ("machine", "Machine", "Machine", machine(data["machine"])),
        ("warnings", "Warnings", f"Warnings ({len(warnings)})", bullets(warnings, "None.")),
    ]
    body = [_header(data, cells, summary)]
    body += [f'<section id="{place}"><h2>{title}</h2>{html}</section>' for place, _, title, html in parts if html]
    title = _title(data)
    return frame(
        title=f"{title} · seatrial",
        body="\n".join(body),
        scripts=[*curves, *waterfalls],
        sections=[(place, link) for place, link, _, html in parts if html],
    )


def _title(data: Mapping[str, Any]) -> str:
    names = [str(model["name"]) for model in data["models"]]
    if len(names) > MOST_NAMED:
        return f"How {len(names)} models hold up under noise"
    return f"How {' and '.join(names) or 'nothing'} hold{'s' if len(names) < 2 else ''} up under noise"


def _header(data: Mapping[str, Any], cells: Sequence[Cell], summary: Sequence[Cell]) -> str:
    about = data["data"]
    eyebrow = f"seatrial robustness · {data['profile']} · {about['name']} · {about['n']:,} samples"
    if any(cell["family"] == "attack" for cell in cells) and about["n_attacks"] != about["n"]:
        eyebrow += f", {about['n_attacks']:,} of them attacked"
    said = "".join(f"<p><b>{escaped(whose(entry), 160)}</b>: {_verdict(entry, cells)}.</p>" for entry in summary)
    if not summary:
        said = "<p>No variant could be evaluated; the reasons stand below.</p>"
    return (
        f'<header><p class="eyebrow">{escaped(eyebrow, 300)}</p><h1>{escaped(_title(data), 300)}</h1>'
        f'<div class="lead">{said}</div></header>'
        "<noscript><section><p>The charts need JavaScript; the tables hold the same figures.</p></section></noscript>"
    )


def _verdict(entry: Cell, cells: Sequence[Cell]) -> str:
    """Return one line of HTML: clean, under the strongest attacks, under corruptions, with all system noises."""
    parts = [f"{percent(entry['clean'])}\N{NO-BREAK SPACE}% clean"]
    worst = {size: value for size, value in entry["WCAR"].items() if value is not None}
    if worst:
        size = min(worst, key=worst.__getitem__)
        budget = f"of {size} budget" if size in ("small", "middle", "large") else f"at ε = {size}"
        parts.append(f"{percent(worst[size])}\N{NO-BREAK SPACE}% of that left by the attacks {escaped(budget)}")
    if entry["NR"] is not None:
        parts.append(f"{percent(entry['NR'])}\N{NO-BREAK SPACE}% under corruptions in the mean")
    natural = [
        cell
        for cell in cells
        if cell["family"] == "corruption" and cell["value"] is not None
        if all(cell[key] == entry[key] for key in ("model", "variant", "target"))
    ]
    if natural:
        least = min(natural, key=lambda cell: cell["value"])
        parts.append(
            f"{percent(least['value'])}\N{NO-BREAK SPACE}% under the worst corruption ({escaped(asked(least), 80)})"
        )
    if entry["combined_drop"] is not None:
        parts.append(
            f"{as_change(entry['combined_drop'])}\N{NO-BREAK SPACE}points with every system noise at its worst"
        )
    return ", ".join(parts)


def _summary(summary: Sequence[Cell]) -> str:
    sizes = list(dict.fromkeys(str(size) for entry in summary for size in entry["WCAR"]))
    columns = [("clean, %", [_bounded(entry, "clean") for entry in summary])]
    for size in sizes:
        found = [_interval(entry["WCAR"].get(size), entry["intervals"].get("WCAR", {}).get(size)) for entry in summary]
        columns.append((f"WCAR {size}, %", found))
    columns += [
        ("NR, %", [_bounded(entry, "NR") for entry in summary]),
        ("mCE", [_bounded(entry, "mCE", scale=1.0) for entry in summary]),
        ("relative mCE", [_bounded(entry, "relative_mCE", scale=1.0) for entry in summary]),
        ("SR mean, %", [_bounded(entry, "SR_mean") for entry in summary]),
        ("SR std, points", [_bounded(entry, "SR_std", digits=2) for entry in summary]),
        ("combined, points", [_combined(entry) for entry in summary]),
    ]
    known = [(name, values) for name, values in columns if any(value != ABSENT for value in values)]
    missing = [name.partition(",")[0] for name, values in columns if all(value == ABSENT for value in values)]
    ddof = summary[0]["SR_ddof"] if summary else 1
    about = (
        "<p>WCAR: of the samples right when clean, the share right under every attack of that budget. NR: mean top-1 "
        "over the 75 corruptions; mCE: error relative to AlexNet's, lower is better. SR: top-1 over decoder by resize, "
        f"deviation with ddof {escaped(ddof)}. Small figures: 95\N{NO-BREAK SPACE}% bootstrap intervals.</p>"
    )
    tables = [known]
    if len(known) > MOST_COLUMNS:
        across = [column for column in known if column[0].startswith(("SR", "combined"))]
        tables = [[column for column in known if column not in across], across]
    html = about
    for shown, caption in zip(tables, ("Every variant", "Every variant across systems")):
        rows = [[escaped(whose(entry), 160), *(values[i] for _, values in shown)] for i, entry in enumerate(summary)]
        heads = ["variant", *(name for name, _ in shown)]
        html += table(heads, rows, caption=caption, numeric=range(1, len(heads)))
    html += _counted(summary, sizes)
    if missing and summary:
        html += (
            f'<p class="quiet">Not to be had from the cells of this run: {escaped(", ".join(missing))}. WCAR needs '
            "samples that are right when clean, NR and mCE all 15 corruptions at 5 severities, SR the grid of decoder "
            "by resize, the combined drop two system noises.</p>"
        )
    return html


def _counted(summary: Sequence[Cell], sizes: Sequence[str]) -> str:
    """Return which attacks WCAR is the worst case of, for each budget, where the run says so."""
    lines = []
    for size in sizes:
        sets = [tuple(sorted(entry.get("WCAR_attacks", {}).get(size) or ())) for entry in summary]
        names = sorted({name for found in sets for name in found})
        if names:
            some = "" if len(set(sets)) == 1 else " (not each for every variant)"
            lines.append(f"{size}: {', '.join(names)}{some}")
    return f'<p class="quiet">Attacks in WCAR: {escaped("; ".join(lines))}.</p>' if lines else ""


def _bounded(entry: Cell, name: str, *, scale: float = 100.0, digits: int = 1) -> str:
    return _interval(entry[name], entry["intervals"].get(name), scale=scale, digits=digits)


def _interval(value: object, interval: Mapping[str, Any] | None, *, scale: float = 100.0, digits: int = 1) -> str:
    number, known = finite(value), interval or {}
    if number is None:
        return ABSENT
    ends = [finite(known.get(key)) for key in ("low", "high")]
    return beneath(
        f"{scale * number:.{digits}f}", " to ".join(f"{scale * x:.{digits}f}" for x in ends if x is not None)
    )


def _combined(entry: Cell) -> str:
    if entry["combined_drop"] is None:
        return ABSENT
    known = entry["intervals"].get("combined_drop") or {}
    low, high = finite(known.get("low")), finite(known.get("high"))
    span = "" if low is None or high is None else f"{as_change(high)} to {as_change(low)}"
    return beneath(as_change(entry["combined_drop"]), span)


def _silent(silent: Sequence[Cell]) -> str:
    """Return the cells without a figure of their own, once for all variants that share a reason."""
    if not silent:
        return "<p>Every cell has one.</p>"
    reasons: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for cell in silent:
        status = str(cell["status"]).replace("-", " ")
        why = (asked(cell), status, str(cell["reason"] or "no reason given"))
        reasons.setdefault(why, {}).setdefault(str(cell["model"]), []).append(variant_of(cell).title)
    rows = "".join(
        f'<li><b>{escaped(noise)}</b> <span class="status">{escaped(status)}</span> {escaped(reason)} '
        f'<span class="quiet">({escaped("; ".join(_named(who)))})</span></li>'
        for (noise, status, reason), who in reasons.items()
    )
    listed = f'<ul class="missing">{rows}</ul>'
    return listed if len(reasons) <= MOST_OPEN else details(f"{len(reasons)} noises with their reasons", listed)


def _named(who: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"{model}: {' · '.join(variants)}" for model, variants in who.items()]


def _subject(data: Mapping[str, Any]) -> str:
    files = {key: data.get(key) for key in ("store", "report") if data.get(key)}
    return (
        "".join(subject("Model", model) for model in data["models"])
        + subject("Data", data["data"])
        + f"<h3>Run</h3>{pairs({'profile': data['profile'], 'seed': data['seed'], **files})}"
    )
