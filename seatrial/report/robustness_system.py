"""The system noises of a robustness run: what each costs, the grid of decoder by resize, and all of them combined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from seatrial.report.chain_chart import chain_chart
from seatrial.report.heat_map import HeatGroup, heat_tables
from seatrial.report.intervals import Reach, ends
from seatrial.report.markup import details, escaped, table
from seatrial.report.robustness_figures import (
    Cell,
    as_change,
    asked,
    mean_with_interval,
    models_of,
    percent,
    shown_value,
    variant_of,
    variants_of,
    whose,
)
from seatrial.report.wording import ABSENT, change, finite

GRID = "decoder+resize"
MOST_OPEN = 24
"""So many rows stand open; more are folded away."""


def corruption_section(cells: Sequence[Cell]) -> str:
    """Return a heat map of corruption by severity for each model as HTML, its variants side by side; '' for none."""
    natural = [cell for cell in cells if cell["family"] == "corruption"]
    if not natural:
        return ""
    about = (
        "<p>Pictures as bad light, optics, sensors and compression leave them: top-1 in percent, the bluer the higher."
        "</p>"
    )
    return about + _heat(natural, lambda c: (str(c["name"]), str(c["severity"])), "corruption by severity")


def grid_section(cells: Sequence[Cell]) -> str:
    """Return a heat map of resize by decoder for each model as HTML; '' for none."""
    pairs = [cell for cell in cells if cell["family"] == "system" and cell["name"] == GRID]
    if not pairs:
        return ""
    about = (
        "<p>Top-1 in percent with another decoder and another resize at once; the pair of the reference pipeline has "
        "the clean figure.</p>"
    )

    def split(cell: Cell) -> tuple[str, str]:
        decoder, _, resize = str(cell["option"]).partition("+")
        return resize, decoder

    return about + _heat(pairs, split, "resize by decoder")


def system_section(cells: Sequence[Cell], summary: Sequence[Cell]) -> str:
    """Return what each single system noise costs, and every cell with its churn, as HTML; '' where none has a figure.

    A difference whose interval holds 0 is grey.
    """
    moved = [c for c in cells if c["family"] == "system" and c["status"] == "done" and "+" not in str(c["name"])]
    if not moved:
        return ""
    html = (
        "<p>The same pictures through another decoder, filter or arithmetic, against the reference pipeline on the "
        "same samples: the change of top-1 in points, with paired 95\N{NO-BREAK SPACE}% intervals. "
        "A difference in grey is none: its interval holds 0.</p>"
    )
    html += "".join(_by_noise(model, moved, summary) for model in models_of(moved))
    heads = ["noise", "variant", "top-1, %", "difference", "changed answers, %", "KL, nats", "pixels, of 255"]
    rows = [
        [
            escaped(asked(c)),
            escaped(whose(c), 120),
            percent(c["value"]),
            _difference(c),
            mean_with_interval(c["churn"], scale=100.0),
            mean_with_interval(c["kl"]),
            mean_with_interval(c["picture_difference"]),
        ]
        for c in moved
    ]
    listed = table(heads, rows, caption="Every system noise", numeric=range(2, 7))
    return html + (listed if len(rows) <= MOST_OPEN else details(f"All {len(rows)} cells as a table", listed))


def chain_section(summary: Sequence[Cell]) -> tuple[str, list[str]]:
    """Return the combined drop of each variant step by step as HTML, with the scripts of its charts; '' for none."""
    chained = [entry for entry in summary if entry["chain"]]
    if not chained:
        return "", []
    html = (
        "<p>Every system noise at the option that costs most by itself, one more at each step in the order in which a "
        "picture meets them. The last figure is the combined drop.</p>"
    )
    scripts: list[str] = []
    rows: list[list[str]] = []
    for model in models_of(chained):
        mine = [entry for entry in chained if entry["model"] == model]
        reaches: list[Reach] = [(finite(step["value"]), None, None) for entry in mine for step in entry["chain"]]
        reach = ends([*reaches, *((finite(entry["clean"]), None, None) for entry in mine)], scale=100.0)
        html += f'<h3>{escaped(model, 120)}</h3><div class="facets wide">'
        for entry in mine:
            about = f"{variant_of(entry).title}: {as_change(entry['combined_drop'])} points"
            place = f"chain-{len(scripts)}"
            chart = chain_chart(entry["clean"], entry["chain"], ends=reach, place=place, about=f"{model}, {about}")
            html += f"<figure><figcaption>{escaped(about, 160)}</figcaption>{chart.html}</figure>"
            scripts.append(chart.script)
            rows += _steps(entry)
        html += "</div>"
    heads = ["variant", "step", "option", "top-1, %", "this step", "against clean"]
    listed = table(heads, rows, caption="Every step of the combined drop", numeric=(3, 4, 5))
    return html + details(f"All {len(rows)} steps as a table", listed), scripts


def _steps(entry: Cell) -> list[list[str]]:
    before, rows = finite(entry["clean"]), []
    for step in entry["chain"]:
        value = finite(step["value"])
        by = None if value is None or before is None else value - before
        rows.append(
            [
                escaped(whose(entry), 120),
                f"+ {escaped(step['noise'])}",
                escaped(step["option"]),
                percent(value),
                change(by, "top1"),
                as_change(step["drop"]),
            ]
        )
        before = value
    return rows


def _heat(cells: Sequence[Cell], key: Callable[[Cell], tuple[str, str]], caption: str) -> str:
    html = ""
    for model in models_of(cells):
        mine = [cell for cell in cells if cell["model"] == model]
        groups = []
        for variant in variants_of(mine, model):
            own = {key(cell): cell for cell in mine if variant_of(cell) == variant}
            notes = {place: f"{c['status']}: {c['reason'] or 'no reason given'}" for place, c in own.items()}
            groups.append(HeatGroup(variant.title, {place: shown_value(c) for place, c in own.items()}, notes))
        rows = list(dict.fromkeys(key(cell)[0] for cell in mine))
        columns = list(dict.fromkeys(key(cell)[1] for cell in mine))
        columns.sort(key=lambda text: int(text) if text.isdecimal() else 0)  # severities; words stay as they come
        corner = caption.partition(" ")[0]
        html += heat_tables(rows, columns, groups, corner=corner, caption=f"{model}: top-1, %, {caption}")
    return html


def _by_noise(model: str, moved: Sequence[Cell], summary: Sequence[Cell]) -> str:
    entries = [entry for entry in summary if entry["model"] == model and entry["system"]]
    if not entries:
        return ""
    names = list(dict.fromkeys(str(row["noise"]) for entry in entries for row in entry["system"]))
    rows = []
    for name in names:
        line = [escaped(name)]
        for entry in entries:
            found = next((row for row in entry["system"] if row["noise"] == name), None)
            line.append(ABSENT if found is None else _mean_and_worst(found, entry, moved))
        rows.append(line)
    heads = ["noise", *(variant_of(entry).title for entry in entries)]
    caption = f"{model}: mean change over the options of a noise; under it the worst option's, grey where that is none"
    return table(heads, rows, caption=caption, numeric=range(1, len(heads)))


def _mean_and_worst(found: Mapping[str, object], entry: Cell, moved: Sequence[Cell]) -> str:
    where = (entry["model"], entry["variant"], entry["target"], found["noise"], found["option"])
    same = (c for c in moved if (c["model"], c["variant"], c["target"], c["name"], c["option"]) == where)
    cell = next(same, None)
    worst = f"{as_change(found['max'])} {found['option'] or ''}".strip()
    mean = escaped(as_change(found["mean"]))
    if cell is not None and not _certain(cell):
        return f'<span class="quiet">{mean}<span class="sub">{escaped(worst, 80)}</span></span>'
    return f'{mean}<span class="sub"><b>{escaped(worst, 80)}</b></span>'


def _certain(cell: Cell) -> bool:
    low, high = finite(cell["difference_low"]), finite(cell["difference_high"])
    return low is not None and high is not None and not low <= 0 <= high


def _difference(cell: Cell) -> str:
    low, high = (percent(cell[key]) for key in ("difference_low", "difference_high"))
    text = f"{change(finite(cell['difference']), 'top1')} ({low} to {high})"
    return f"<b>{text}</b>" if _certain(cell) else f'<span class="quiet">{text}</span>'
