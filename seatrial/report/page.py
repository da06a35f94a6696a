"""The report of a trial: one HTML file that says what came out, shows it, and ends with what it rests on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from seatrial.report.appendix import appendix
from seatrial.report.frame import frame
from seatrial.report.latency_chart import latency_chart
from seatrial.report.marks import COLORS, Mark, key, marks
from seatrial.report.markup import details, escaped, table
from seatrial.report.noise_section import noise_section
from seatrial.report.picture_grid import picture_grid
from seatrial.report.site_chart import WORST, site_chart, site_errors
from seatrial.report.subject import Variant, named
from seatrial.report.summary import headline, summary_rows
from seatrial.report.summary_table import summary_table, tiles
from seatrial.report.verdict import sentences, title


def render(result: Mapping[str, Any], extras: Mapping[str, Any]) -> str:
    """Return the report of a trial as one self-contained HTML page; equal arguments give equal bytes.

    `result` is the JSON of `seatrial trial`. `extras` may hold `settings` (a mapping), `fallbacks` (texts or
    mappings), `sites` (`site`, `bits`, `sqnr_db`), `pictures` (`noise`, `option`, `severity`, `png` as bytes or
    base64, `label`, and an answer for each variant under `NAME_answer`) and `paired` (by `name@target`: `low` and
    `high` of the paired difference against float). What is missing leaves its section out or says so.

    Raises BadInput for a noise cell of an unknown family.
    """
    rows = summary_rows(result)
    first = headline(rows)
    variants = [row.variant for row in rows]
    drawn = marks(variants)
    verdict = title(first)
    fallbacks = list(extras.get("fallbacks") or ())
    noise, scripts = noise_section(variants, drawn)

    eyebrow = " · ".join(
        part for part in ("seatrial report", named(result.get("model")), named(result.get("data"))) if part
    )
    said = "".join(
        f"<p>{_together(escaped(text))}</p>" for text in sentences(result, rows, first, extras.get("paired") or {})
    )
    notice = _notice(len(result.get("warnings") or ()), len(fallbacks))
    body = [
        f'<header><p class="eyebrow">{escaped(eyebrow, 300)}</p><h1>{escaped(verdict, 300)}</h1>'
        f'<div class="lead">{said}{notice}</div>{tiles(first)}</header>',
        "<noscript><section><p>The charts need JavaScript; the tables hold the same figures.</p></section></noscript>",
        f'<section id="summary"><h2>Summary</h2>{summary_table(rows, first, drawn)}</section>',
    ]
    sections = [("summary", "Summary")]

    latency, latency_scripts = _latency_section(variants, drawn)
    body += [latency, f'<section id="noise"><h2>Under noise</h2>{noise}</section>']
    sections += [("latency", "Latency"), ("noise", "Noise")]
    scripts = latency_scripts + scripts

    if extras.get("sites"):
        html, more = _site_section(extras["sites"])
        body.append(html)
        scripts += more
        sections.append(("sites", "Sites"))
    if extras.get("pictures"):
        about = "<p>What each noise does to one picture, and what the variants answer.</p>"
        grid = picture_grid(extras["pictures"])
        body.append(f'<section id="pictures"><h2>Example pictures</h2>{about}{grid}</section>')
        sections.append(("pictures", "Pictures"))
    body.append(appendix(result, extras.get("settings") or {}, fallbacks))
    sections += [("settings", "Settings"), ("machine", "Machine"), ("warnings", "Warnings"), ("fallbacks", "Fallbacks")]
    return frame(title=f"{verdict} · seatrial", body="\n".join(body), scripts=scripts, sections=sections)


def _together(html: str) -> str:
    """Keep figures and their units on one line."""
    return re.sub(r"(?<=\d) (?=(?:ms|B|kB|MB|GB|TB|%|points|samples)\b|%)", "\u00a0", html)


def _notice(warnings: int, fallbacks: int) -> str:
    def counted(count: int, word: str) -> str:
        return f'<a href="#{word}s">{count} {word}{"" if count == 1 else "s"}</a>'

    parts = [counted(n, word) for n, word in ((warnings, "warning"), (fallbacks, "fallback")) if n]
    return f"<p>The run recorded {' and '.join(parts)}.</p>" if parts else ""


def _latency_section(variants: Sequence[Variant], drawn: Sequence[Mark]) -> tuple[str, list[str]]:
    chart = latency_chart(variants, drawn, place="chart-latency")
    untimed = [v.title for v in variants if v.median_ms is None]
    missing = f'<p class="quiet">Not timed: {escaped("; ".join(untimed))}.</p>' if untimed else ""
    opening = '<section id="latency"><h2>Latency against accuracy</h2>'
    if chart is None:
        return f'{opening}<p class="quiet">No variant has both a latency and an accuracy.</p>{missing}</section>', []
    shown = [(v, m) for v, m in zip(variants, drawn) if v.median_ms is not None]
    about = (
        "Up and to the left is better. Lines: 10th to 90th percentile of the latency, 95\N{NO-BREAK SPACE}% interval."
    )
    return (
        f"{opening}<p>{about}</p>{key([v for v, _ in shown], [m for _, m in shown])}"
        f"<figure>{chart.html}</figure>{missing}</section>",
        [chart.script],
    )


def _site_section(rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    errors = site_errors(rows)
    chart = site_chart(errors, COLORS[0], place="chart-sites")
    count = sum(error.sqnr_db is not None for error in errors)
    which = f"The {WORST} worst of {count:,} sites" if count > WORST else "Every site, the worst first"
    about = f"<p>{which}: the power of the signal over the power of what quantization adds to it.</p>"
    listed = table(
        ["site", "bits", "SQNR, dB"],
        [
            [f"<code>{escaped(e.site)}</code>", escaped(e.bits), "–" if e.sqnr_db is None else f"{e.sqnr_db:.2f}"]
            for e in errors
        ],
        caption="Signal to quantization noise of every site, the worst first",
        numeric=(1, 2),
    )
    shown = f"<figure>{chart.html}</figure>" if chart else '<p class="quiet">No site has a figure.</p>'
    html = f'<section id="sites"><h2>Quantization error by site</h2>{about}{shown}'
    return html + details(f"All {len(errors):,} sites as a table", listed) + "</section>", [
        chart.script
    ] if chart else []
