"""The report of `seatrial robustness`: one HTML page from its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seatrial.core.noise import NoiseSpec
from seatrial.report.appendix import machine
from seatrial.report.frame import frame
from seatrial.report.heat_table import heat_table
from seatrial.report.marks import key, marks
from seatrial.report.markup import bullets, details, escaped, pairs, table
from seatrial.report.picture_grid import picture_grid
from seatrial.report.severity_chart import order, severity_chart
from seatrial.report.subject import NoiseCell, Variant
from seatrial.report.wording import MINUS

Cell = Mapping[str, Any]
_DASH = "\N{EN DASH}"


def render_robustness(data: Mapping[str, Any], extras: Mapping[str, Any]) -> str:
    """Return the page; `data` is the JSON of `seatrial robustness`, `extras["pictures"]` what each noise does to one.

    Equal arguments give equal bytes. Sections without a cell are left out.
    """
    cells, summary = list(data["cells"]), list(data["summary"])
    body = [_header(data, summary), f'<section id="summary"><h2>Summary</h2>{_summary(summary)}</section>']
    sections = [("summary", "Summary")]
    scripts: list[str] = []
    attacks, script = _attacks(cells, summary)
    for place, title, html in (
        ("attacks", "Attacks", attacks),
        ("masking", "Masked gradients", _masking(data["masking"], attacks)),
        ("corruptions", "Corruptions", _corruptions(cells)),
        ("grid", "Decoder by resize", _grid(cells)),
        ("system", "System noise", _system(cells)),
        ("chain", "Combined drop", _chains(summary)),
    ):
        if html:
            body.append(f'<section id="{place}"><h2>{title}</h2>{html}</section>')
            sections.append((place, title))
    scripts += script
    if extras.get("pictures"):
        about = "<p>What each noise does to one picture, and what the first variant answers.</p>"
        body.append(f'<section id="pictures"><h2>Pictures</h2>{about}{picture_grid(extras["pictures"])}</section>')
        sections.append(("pictures", "Pictures"))
    body.append(_rest(data, cells))
    sections += [("open", "Without a figure"), ("machine", "Machine"), ("warnings", "Warnings")]
    return frame(title="Robustness · seatrial", body="\n".join(body), scripts=scripts, sections=sections)


def _name(cell: Mapping[str, Any]) -> str:
    return f"{cell['model']} {cell['variant']} on {cell['target']}"


def _percent(value: object, sign: bool = False) -> str:
    if not isinstance(value, int | float):
        return _DASH
    text = f"{abs(100 * value):.1f}"
    if not sign:
        return f"{MINUS if value < 0 and float(text) else ''}{text}"
    return f"±{text}" if float(text) == 0 else f"{'+' if value > 0 else MINUS}{text}"


def _header(data: Mapping[str, Any], summary: Sequence[Mapping[str, Any]]) -> str:
    about = data["data"]
    lines = []
    for entry in summary:
        worst = [value for value in entry["WCAR"].values() if value is not None]
        parts = [f"{_percent(entry['clean'])} % clean"]
        if worst:
            parts.append(f"{_percent(min(worst))} % of that under the worst attacks")
        if entry["NR"] is not None:
            parts.append(f"{_percent(entry['NR'])} % under corruptions")
        if entry["combined_drop"] is not None:
            parts.append(f"{_percent(-entry['combined_drop'], sign=True)} points with every system noise at its worst")
        lines.append(f"<p><b>{escaped(_name(entry), 120)}</b>: {', '.join(parts)}.</p>")
    who = ", ".join(str(model["name"]) for model in data["models"])
    eyebrow = f"seatrial robustness · {data['profile']} · {about['name']} · {about['n']:,} samples"
    return (
        f'<header><p class="eyebrow">{escaped(eyebrow, 300)}</p><h1>{escaped(f"How {who} holds under noise", 200)}</h1>'
        f'<div class="lead">{"".join(lines)}</div></header>'
        "<noscript><section><p>The curves need JavaScript; the tables do not.</p></section></noscript>"
    )


def _summary(summary: Sequence[Mapping[str, Any]]) -> str:
    sizes = list(dict.fromkeys(name for entry in summary for name in entry["WCAR"]))
    heads = ["variant", "clean", *(f"WCAR {size}" for size in sizes), "NR", "mCE", "SR mean", "SR std", "combined"]
    rows = []
    for entry in summary:
        figures = [_percent(entry["clean"])]
        found = entry["intervals"].get("WCAR", {})
        figures += [_with(entry["WCAR"].get(size), found.get(size), 100) for size in sizes]
        figures += [
            _with(entry["NR"], entry["intervals"].get("NR"), 100),
            _with(entry["mCE"], entry["intervals"].get("mCE"), 1),
        ]
        figures += [_percent(entry["SR_mean"]), _DASH if entry["SR_std"] is None else f"{100 * entry['SR_std']:.2f}"]
        figures.append(_DASH if entry["combined_drop"] is None else _percent(-entry["combined_drop"], sign=True))
        rows.append([escaped(_name(entry), 120), *figures])
    about = (
        "<p>Percent of the samples; WCAR: of those right when clean, the share right under every attack of that "
        "magnitude. mCE is relative to AlexNet, lower is better. SR: accuracy over decoder by resize, deviation with "
        f"ddof {summary[0]['SR_ddof'] if summary else 1}. Small figures: 95 % bootstrap intervals over samples.</p>"
    )
    return about + table(heads, rows, caption="Every variant", numeric=range(1, len(heads)))


def _with(value: float | None, interval: Mapping[str, float] | None, scale: float) -> str:
    if value is None:
        return _DASH
    shown = f"{scale * value:.1f}"
    if interval is None:
        return shown
    return f'{shown} <span class="quiet">({scale * interval["low"]:.1f} to {scale * interval["high"]:.1f})</span>'


def _variants(summary: Sequence[Mapping[str, Any]]) -> list[Variant]:
    """Return the variants of one model as the charts take them."""
    return [
        Variant(
            name=str(entry["variant"]),
            target=str(entry["target"]),
            bits="float32" if entry["variant"] == "float" else str(entry["variant"]),
            size_bytes=None,
            latency=None,
            metric="top1",
            value=entry["clean"],
            interval=None,
            agreement=None,
            agreement_simulated=None,
            cells=(),
        )
        for entry in summary
    ]


def _attacks(cells: Sequence[Cell], summary: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    hostile = [cell for cell in cells if cell["family"] == "attack" and cell["status"] == "done"]
    if not hostile:
        return "", []
    html, scripts = "", []
    for number, model in enumerate(dict.fromkeys(cell["model"] for cell in hostile)):
        entries = [entry for entry in summary if entry["model"] == model]
        variants = _variants(entries)
        drawn = marks(variants)
        html += f"<h3>{escaped(model, 120)}</h3>{key(variants, drawn)}" + '<div class="facets">'
        names = list(dict.fromkeys((c["name"], c["norm"], c["option"]) for c in hostile if c["model"] == model))
        for place, (name, norm, option) in enumerate(names):
            mine = [
                c for c in hostile if (c["model"], c["name"], c["norm"], c["option"]) == (model, name, norm, option)
            ]
            by_variant: dict[int, list[NoiseCell]] = {}
            for index, entry in enumerate(entries):
                found = [c for c in mine if (c["variant"], c["target"]) == (entry["variant"], entry["target"])]
                if found:
                    by_variant[index] = [_noise_cell(c) for c in found]
            if not by_variant:
                continue
            about = " ".join(str(part) for part in (name, norm, option) if part)
            chart = severity_chart(
                by_variant, variants, drawn, ends=(0, 100), place=f"curve-{number}-{place}", about=about
            )
            html += f"<figure><figcaption>{escaped(about)}</figcaption>{chart.html}</figure>"
            scripts.append(chart.script)
        html += "</div>"
    heads = ["attack", "variant", "ε", "access", "accuracy", "AR", "zero gradients", "queries"]
    rows = [
        [
            escaped(" ".join(str(p) for p in (c["name"], c["norm"], c["option"]) if p)),
            escaped(_name(c), 120),
            escaped(c["severity"]),
            escaped(c["access"] or ""),
            f'{_percent(c["value"])} <span class="quiet">({_percent(c["low"])} to {_percent(c["high"])})</span>',
            _percent(c["AR"]),
            _percent(c["zero_gradient"]),
            _DASH if c["queries"] is None else f"{c['queries']:.0f}",
        ]
        for c in sorted(hostile, key=lambda c: (c["model"], c["name"], str(c["norm"]), order(c["severity"])))
    ]
    listed = table(heads, rows, caption="Every attack; percent", numeric=(2, 4, 5, 6, 7))
    return html + details(f"All {len(rows)} attack cells as a table", listed), scripts


def _noise_cell(cell: Cell) -> NoiseCell:
    spec = NoiseSpec("attack", cell["name"], cell["option"], cell["norm"], cell["severity"])
    return NoiseCell(spec, cell["access"], "top1", cell["value"], cell["low"], cell["high"], cell["n"], "done", None)


def _masking(findings: Sequence[Mapping[str, Any]], attacks: str) -> str:
    if not attacks:
        return ""
    said = [f"{_name(f)}, {f['attack']} {f['norm']} at {f['severity']}: {f['text']}" for f in findings]
    about = (
        "<p>A weaker attacker must not do more than a stronger one, and gradients must not be zero; where one of these "
        "fails, robustness under gradients is not to be believed.</p>"
    )
    return about + bullets(said, "No sign: no attack on scores or from the float parent beats the gradients.")


def _corruptions(cells: Sequence[Cell]) -> str:
    html = ""
    natural = [cell for cell in cells if cell["family"] == "corruption"]
    for name in dict.fromkeys(_name(cell) for cell in natural):
        mine = [cell for cell in natural if _name(cell) == name]
        columns = [str(s) for s in sorted({cell["severity"] for cell in mine})]
        rows = list(dict.fromkeys(cell["name"] for cell in mine))
        values = {(c["name"], str(c["severity"])): c["value"] for c in mine}
        notes = {(c["name"], str(c["severity"])): f"{c['status']}: {c['reason']}" for c in mine}
        map_ = heat_table(rows, columns, values, corner="severity", caption=f"{name}: top-1, %", notes=notes)
        html += f"<figure>{map_}</figure>"
    return f'<div class="facets wide">{html}</div>' if html else ""


def _grid(cells: Sequence[Cell]) -> str:
    html = ""
    pairs_ = [cell for cell in cells if cell["name"] == "decoder+resize"]
    for name in dict.fromkeys(_name(cell) for cell in pairs_):
        mine = [cell for cell in pairs_ if _name(cell) == name]
        split = {tuple(str(cell["option"]).split("+", 1)): cell for cell in mine}
        decoders = list(dict.fromkeys(decoder for decoder, _ in split))
        resizes = list(dict.fromkeys(resize for _, resize in split))
        values = {
            (resize, decoder): cell["clean"] if cell["status"] == "no-noise" else cell["value"]
            for (decoder, resize), cell in split.items()
        }
        notes = {(resize, decoder): f"{c['status']}: {c['reason']}" for (decoder, resize), c in split.items()}
        caption = f"{name}: top-1, %; the system's own choice has the clean figure"
        html += (
            f"<figure>{heat_table(resizes, decoders, values, corner='resize', caption=caption, notes=notes)}</figure>"
        )
    return f'<div class="facets wide">{html}</div>' if html else ""


def _system(cells: Sequence[Cell]) -> str:
    moved = [c for c in cells if c["family"] == "system" and c["status"] == "done" and "+" not in c["name"]]
    if not moved:
        return ""
    heads = ["noise", "variant", "top-1", "difference", "changed answers", "KL, nats", "pixels, of 255"]
    rows = []
    for c in moved:
        certain = c["difference"] is not None and not c["difference_low"] <= 0 <= c["difference_high"]
        ends = f"{_percent(c['difference_low'])} to {_percent(c['difference_high'])}"
        text = f"{_percent(c['difference'], sign=True)} ({ends})"
        rows.append(
            [
                escaped(f"{c['name']} {c['option']}"),
                escaped(_name(c), 120),
                _percent(c["value"]),
                f"<b>{text}</b>" if certain else f'<span class="quiet">{text}</span>',
                _interval(c["churn"], 100, 1),
                _interval(c["kl"], 1, 4),
                _interval(c["picture_difference"], 1, 2),
            ]
        )
    about = (
        "<p>Against the reference pipeline on the same samples, with paired 95 % intervals, in percent and points. "
        "A difference in grey is none: its interval holds 0.</p>"
    )
    return about + table(heads, rows, caption="Every system noise", numeric=range(2, 7))


def _interval(found: Mapping[str, float] | None, scale: float, digits: int) -> str:
    if found is None:
        return _DASH
    low, value, high = (f"{scale * found[part]:.{digits}f}" for part in ("low", "value", "high"))
    return f'{value} <span class="quiet">({low} to {high})</span>'


def _chains(summary: Sequence[Mapping[str, Any]]) -> str:
    html = ""
    for entry in summary:
        if not entry["chain"]:
            continue
        rows = [["clean", "", _percent(entry["clean"]), ""]]
        for step in entry["chain"]:
            drop = _percent(-step["drop"], sign=True)
            rows.append([f"+ {escaped(step['noise'])}", escaped(step["option"]), _percent(step["value"]), drop])
        caption = f"{_name(entry)}: every noise at its worst option, one more at each step"
        html += table(["step", "option", "top-1, %", "against clean"], rows, caption=caption, numeric=(2, 3))
    return html


def _rest(data: Mapping[str, Any], cells: Sequence[Cell]) -> str:
    silent = [cell for cell in cells if cell["status"] != "done"]
    rows = [
        [
            escaped(f"{c['name']} {c['option'] or c['severity'] or ''}"),
            escaped(_name(c), 120),
            escaped(c["status"]),
            escaped(c["reason"]),
        ]
        for c in silent
    ]
    listed = table(["noise", "variant", "status", "reason"], rows, caption="Cells without a figure, and why")
    models = "".join(pairs(model) for model in data["models"])
    about = {name: value for name, value in data["data"].items() if name != "bad"}
    return (
        f'<section id="open"><h2>Without a figure ({len(silent)})</h2>'
        + (details(f"{len(silent)} cells", listed) if silent else "<p>Every cell has one.</p>")
        + f'</section><section id="subject"><h2>Models and data</h2>{models}<h3>Data</h3>{pairs(about)}</section>'
        f'<section id="machine"><h2>Machine</h2>{machine(data["machine"])}</section>'
        f'<section id="warnings"><h2>Warnings ({len(data["warnings"])})</h2>'
        f"{bullets(data['warnings'], 'None.')}</section>"
    )
