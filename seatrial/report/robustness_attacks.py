"""The attacks of a robustness run: curves against epsilon, every cell as a table, and signs of masked gradients."""

from __future__ import annotations

from collections.abc import Sequence

from seatrial.report.epsilon_curves import epsilon_curves
from seatrial.report.intervals import ends
from seatrial.report.marks import key, marks
from seatrial.report.markup import bullets, details, escaped, table
from seatrial.report.robustness_figures import Cell, asked, models_of, percent, variant_of, variants_of, whose
from seatrial.report.severity_chart import order
from seatrial.report.wording import ABSENT, finite


def attack_section(cells: Sequence[Cell]) -> tuple[str, list[str]]:
    """Return HTML and the scripts of its charts, one per model, attack and norm; '' where no attack has a figure."""
    hostile = [cell for cell in cells if cell["family"] == "attack" and cell["status"] == "done"]
    if not hostile:
        return "", []
    html = (
        "<p>Pictures changed on purpose within a budget ε, until the model errs: top-1 on the attacked samples, with "
        "95\N{NO-BREAK SPACE}% intervals. Found on the variant itself (white-box), on its float parent (transfer), "
        "or by its scores or decisions alone.</p>"
    )
    scripts = []
    for number, model in enumerate(models_of(hostile)):
        mine = [cell for cell in hostile if cell["model"] == model]
        variants = variants_of(mine, model)
        drawn = marks(variants)
        points = [(finite(c["value"]), finite(c["low"]), finite(c["high"])) for c in mine]
        reach = ends([*points, *((finite(c["clean"]), None, None) for c in mine), (0.0, None, None)], scale=100.0)
        html += f'<h3>{escaped(model, 120)}</h3>{key(variants, drawn)}<div class="facets">'
        kinds = dict.fromkeys((c["name"], c["norm"], c["option"]) for c in mine)
        for place, kind in enumerate(kinds):
            group = [c for c in mine if (c["name"], c["norm"], c["option"]) == kind]
            access = dict.fromkeys(str(c["access"]) for c in group if c["access"])
            about = " ".join(str(part) for part in kind if part) + (f", {' or '.join(access)}" if access else "")
            by_variant = {i: [c for c in group if variant_of(c) == variant] for i, variant in enumerate(variants)}
            chart = epsilon_curves(
                {i: found for i, found in by_variant.items() if found},
                variants,
                drawn,
                ends=reach,
                place=f"curve-{number}-{place}",
                about=about,
            )
            html += f"<figure><figcaption>{escaped(about, 160)}</figcaption>{chart.html}</figure>"
            scripts.append(chart.script)
        html += "</div>"
    return html + _listed(hostile), scripts


def _listed(hostile: Sequence[Cell]) -> str:
    models, variants = models_of(hostile), list(dict.fromkeys(variant_of(cell) for cell in hostile))

    def place(c: Cell) -> tuple[object, ...]:
        kind = (str(c["name"]), str(c["norm"] or ""), order(c["severity"]), str(c["option"] or ""))
        return (*kind, models.index(str(c["model"])), variants.index(variant_of(c)))

    heads = ["attack", "variant", "access", "top-1", "robust accuracy", "AR", "zero gradients", "queries", "n"]
    rows = [
        [
            escaped(asked(c)),
            escaped(whose(c), 120),
            escaped(c["access"] or ABSENT),
            f'{percent(c["value"])} <span class="quiet">({percent(c["low"])} to {percent(c["high"])})</span>',
            percent(c["robust_accuracy"]),
            percent(c["AR"]),
            percent(c["zero_gradient"]),
            ABSENT if finite(c["queries"]) is None else f"{c['queries']:.0f}",
            escaped(c["n"]),
        ]
        for c in sorted(hostile, key=place)
    ]
    about = (
        "Percent of the attacked samples; robust accuracy: right before and after; AR: of those right before, the "
        "share right after; zero gradients: entries of the first gradient that are exactly 0; queries: mean a sample."
    )
    return details(f"All {len(rows)} attack cells as a table", table(heads, rows, caption=about, numeric=range(3, 9)))


def masking_section(findings: Sequence[Cell], cells: Sequence[Cell]) -> str:
    """Return the signs of masked gradients as HTML; '' where nothing was attacked."""
    hostile = [cell for cell in cells if cell["family"] == "attack" and cell["status"] == "done"]
    if not hostile and not findings:
        return ""
    said = [f"{whose(f)}, {f['attack']} {f['norm']} at ε = {f['severity']}: {f['text']}." for f in findings]
    about = (
        "<p>An attacker who knows less must not do more, and gradients must not be zero: where one of these fails, "
        "robustness under gradients is not to be believed.</p>"
    )
    climbed = [cell for cell in hostile if finite(cell["zero_gradient"]) is not None]
    blind = [cell for cell in hostile if cell["access"] != "white-box"]
    if climbed and blind:
        none = "No sign: no attack on scores or from the float parent does more than the gradients."
    elif climbed:
        none = "No gradient is zero; no weaker attacker ran that could have done more."
    else:
        none = "No attack of this run climbed a gradient of its own, so there is nothing to mask."
    return about + bullets(said, none)
