"""The page of `seatrial robustness`, made from its JSON."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report_page import ATTACKS, Page, closed
from test_report_robustness_sample import NO_POOL, sample_pictures, sample_robustness

from seatrial.core.noise import epsilon_size
from seatrial.report.epsilon_curves import epsilon_places
from seatrial.report.heat_map import HeatGroup, heat_tables
from seatrial.report.robustness_figures import variant_of, whose
from seatrial.report.robustness_page import render_robustness
from seatrial.report.robustness_system import GRID
from seatrial.report.severity_chart import order

HOSTILE = "<script>alert(1)</script>"


def cell(family: str, name: str, **given: Any) -> dict[str, Any]:
    """Return one cell as the job writes it, done, at 50 %."""
    blank = dict.fromkeys(
        ("option", "norm", "severity", "access", "reason", "difference", "difference_low", "difference_high")
    ) | dict.fromkeys(("churn", "kl", "picture_difference", "AR", "robust_accuracy", "zero_gradient", "queries"))
    base = {"model": "net", "variant": "w8a8", "target": "openvino", "family": family, "name": name}
    figures = {"metric": "top1", "value": 0.5, "low": 0.4, "high": 0.6, "n": 100, "clean": 0.9, "status": "done"}
    return {**blank, **base, **figures, **given}


def page(cells: list[dict[str, Any]], **given: Any) -> str:
    entry = {
        "model": "net", "variant": "w8a8", "target": "openvino", "clean": 0.9, "AR": {}, "WCAR": {"middle": 0.25},
        "NR": None, "mCE": None, "relative_mCE": None, "SR_mean": None, "SR_std": None, "SR_ddof": 1, "SR_cells": 0,
        "system": [], "combined_drop": 0.125,
        "chain": [{"noise": "decoder", "option": "pyav", "value": 0.775, "drop": 0.125}],
        "intervals": {"WCAR": {"middle": {"low": 0.2, "high": 0.3}}},
    }  # fmt: skip
    data: dict[str, Any] = {
        "profile": "quick",
        "models": [{"name": "net", "source": "net.pt2", "digest": "00", "labels": "as the model"}],
        "data": {"name": "pictures", "n": 100, "n_attacks": 100, "classes": 10, "digest": "00", "bad": []},
        "machine": {"cpu": "a chip", "cores": 2},
        "seed": 0,
        "cells": cells,
        "summary": [entry],
        "masking": [],
        "warnings": [],
    }
    return render_robustness({**data, **given}, {"pictures": []})


def test_every_section_has_its_figures() -> None:
    moved = {"value": 0.1, "low": 0.05, "high": 0.15}
    known = {"difference": -0.02, "churn": moved, "kl": moved, "picture_difference": moved}
    shown = page(
        [
            cell(
                "attack", "pgd", norm="linf", severity="2/255", access="transfer", AR=0.4, zero_gradient=0.1, queries=20
            ),
            cell("corruption", "fog", severity=3, value=0.625),
            cell("corruption", "snow", severity=3, value=None, status="failed", reason="no memory"),
            cell("system", "resize", option="opencv-area", difference_low=-0.04, difference_high=0.01, **known),
            cell("system", "resize", option="opencv-nearest", difference_low=-0.04, difference_high=-0.01, **known),
            cell("system", "decoder+resize", option="pyav+opencv-area"),
            cell("system", "decoder+resize", option="pillow+opencv-area", value=None, status="no-noise", reason="same"),
        ]
    )
    for section in ("attacks", "masking", "corruptions", "grid", "system", "chain", "open"):
        assert f'<section id="{section}">' in shown
    assert "62.5" in shown
    assert "no memory" in shown
    assert '<span class="quiet">−2.0 (−4.0 to 1.0)</span>' in shown  # its interval holds 0
    assert "<b>−2.0 (−4.0 to −1.0)</b>" in shown
    assert "25.0" in shown
    assert "−12.5" in shown
    grid = shown[shown.index('<section id="grid">') :]
    assert ">90.0<" in grid[: grid.index("</section>")]  # what changes nothing has the clean figure


def test_sections_without_a_cell_are_left_out() -> None:
    shown = page([cell("corruption", "fog", severity=3)])
    assert '<section id="attacks">' not in shown
    assert '<section id="grid">' not in shown
    assert '<section id="corruptions">' in shown


def test_a_page_is_the_same_twice_and_asks_for_nothing() -> None:
    cells = [cell("attack", "pgd", norm="linf", severity="2/255", access="white-box")]
    assert page(cells) == page(cells)
    written = re.sub(r"<script>.*?</script>", "", page(cells), flags=re.DOTALL)
    assert not re.search(r'(src|href)="https?:', written)


@pytest.mark.parametrize("where", ["model", "variant", "option"])
def test_names_cannot_slip_a_script_in(where: str) -> None:
    shown = page(
        [
            cell("attack", "pgd", norm="linf", severity="2/255", access="transfer", **{where: HOSTILE}),
            cell("system", "resize", difference=0.0, difference_low=-1.0, difference_high=1.0, **{where: HOSTILE}),
        ],
        warnings=[HOSTILE],
        masking=[{"model": HOSTILE, "variant": "a", "target": "b", "attack": "pgd", "norm": "linf", "severity": "1"}
                 | {"text": HOSTILE}],
    )  # fmt: skip
    assert HOSTILE not in shown


def poisoned(value: Any, attack: str) -> Any:
    """`value` with every text in it, names of budgets included, followed by an attack."""
    if isinstance(value, str):
        return value if value == GRID else value + attack
    if isinstance(value, list):
        return [poisoned(part, attack) for part in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for key, part in value.items():
        if key in {"family", "status", "metric", "target", "png"}:
            found[key] = part
        elif key in {"WCAR", "WCAR_attacks", "libraries"}:
            found[key] = {f"{name}{attack}": poisoned(inner, attack) for name, inner in part.items()}
        else:
            found[key] = poisoned(part, attack)
    return found


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render_robustness(sample_robustness(full=True), sample_pictures()))


@pytest.mark.parametrize("everything", [False, True])
def test_a_page_is_closed_and_leaves_its_arguments_alone(everything: bool) -> None:
    data, extras = sample_robustness(full=everything), sample_pictures()
    shown = Page(render_robustness(data, extras))
    closed(shown)
    assert (data, extras) == (sample_robustness(full=everything), sample_pictures())
    assert len(shown.ids()) == len(set(shown.ids()))
    links = [attrs["href"] or "" for tag, attrs in shown.tags if tag == "a"]
    assert links
    assert all(link[1:] in shown.ids() for link in links)
    tables = [attrs for tag, attrs in shown.tags if tag == "table"]
    assert len(tables) == len([tag for tag, _ in shown.tags if tag == "caption"])


@pytest.mark.parametrize("attack", ATTACKS)
def test_names_stay_text(attack: str, full: Page) -> None:
    html = render_robustness(poisoned(sample_robustness(full=True), attack), poisoned(sample_pictures(), attack))
    html.encode("utf-8")
    shown = Page(html)
    closed(shown)
    assert [tag for tag, _ in shown.tags] == [tag for tag, _ in full.tags]
    assert [sorted(attrs) for _, attrs in shown.tags] == [sorted(attrs) for _, attrs in full.tags]
    assert not [script for script in shown.scripts[1:-1] if re.search(r"(<|\\u003c)(a href|img|svg|script)", script)]


def test_every_variant_has_its_verdict(full: Page) -> None:
    data = sample_robustness(full=True)
    assert len(data["summary"]) == 6
    for entry in data["summary"]:
        title = f"{entry['model']}: {variant_of(entry).title}"
        worst = min(
            (c for c in data["cells"] if c["family"] == "corruption" and whose(c) == title), key=lambda c: c["value"]
        )
        said = f"{title} : {100 * entry['clean']:.1f} % clean, 0.4 % of that left by the attacks of large budget"
        assert said in full.words
        assert f"{100 * worst['value']:.1f} % under the worst corruption ({worst['name']} severity 5)" in full.words
        assert f"{100 * -entry['combined_drop']:.1f}".replace("-", "−") + " points with every" in full.words


def test_every_figure_of_a_heat_map_is_there(full: Page) -> None:
    data = sample_robustness(full=True)
    shaded = [attrs for _, attrs in full.tags if "background:" in (attrs.get("style") or "")]
    asked = [cell for cell in data["cells"] if cell["family"] == "corruption" or cell["name"] == GRID]
    assert len(shaded) == len(asked)


def test_what_has_no_figure_stands_once_with_its_reason(full: Page) -> None:
    assert full.words.count(NO_POOL) == 1
    assert "decoder pyav failed PyAV cannot decode 3 of 800 samples (squeezenet1_1: w8a8 on onnxruntime;" in full.words
    silent = [cell for cell in sample_robustness(full=True)["cells"] if cell["status"] != "done"]
    assert f"Without a figure ({len(silent)})" in full.words


def test_drops_and_their_intervals_are_changes(full: Page) -> None:
    assert "−6.1 to +0.4" in full.words
    assert full.words.index("Every variant across systems") < full.words.index("−6.1 to +0.4")
    assert "Attacks in WCAR: small: pgd:linf, square:linf; middle: pgd:linf, square:linf; large:" in full.words


def test_figures_that_need_more_cells_are_named() -> None:
    shown = Page(render_robustness(sample_robustness(), sample_pictures()))
    assert "Not to be had from the cells of this run: NR, mCE, relative mCE, SR mean, SR std." in shown.words
    assert "WCAR middle, %" in shown.words
    assert "WCAR small" not in shown.words


def test_charts_say_their_figures(full: Page) -> None:
    data = sample_robustness(full=True)
    said = [attrs["aria-label"] or "" for _, attrs in full.tags if attrs.get("class") == "plot"]
    kinds = {(c["model"], c["name"]) for c in data["cells"] if c["family"] == "attack"}
    assert len(said) == len(kinds) + len(data["summary"])
    pgd = next(text for text in said if text.startswith("pgd linf, white-box. float on torch:"))
    epsilons = [pgd.index(f" {text} ") for text in ("clean", "0.5/255", "2/255", "8/255")]
    assert epsilons == sorted(epsilons)
    last = data["summary"][0]["chain"][-1]
    assert any(f"+ {last['noise']} {last['option']}: {100 * last['value']:.1f} %." in text for text in said)


def test_no_variant_at_all_leaves_a_page() -> None:
    data = {**sample_robustness(), "cells": [], "summary": [], "models": [], "masking": []}
    shown = Page(render_robustness(data, {}))
    closed(shown)
    assert "No variant could be evaluated" in shown.words


def test_masking_is_not_denied_where_nobody_looked() -> None:
    head = {"norm": "linf", "severity": "2/255"}
    climbed = cell("attack", "pgd", access="white-box", zero_gradient=0.0, **head)
    blind = cell("attack", "square", access="score", **head)
    assert "No sign" in page([climbed, blind])
    assert "no weaker attacker ran" in page([climbed])
    assert "nothing to mask" in page([blind])


@pytest.mark.parametrize(
    ("text", "size"),
    [("0.5/255", 0.5 / 255), ("8", 8.0), ("400@224", 400.0), ("0.5@224", 0.5), ("1/0", None), ("many", None)],
)
def test_epsilons_are_read(text: str, size: float | None) -> None:
    assert epsilon_size(text) == size


@given(st.permutations(["0.5/255", "1/255", "2/255", "8/255", "16/255", "word"]))
def test_epsilons_stand_in_order_of_size(texts: list[str]) -> None:
    assert sorted(texts, key=order) == ["0.5/255", "1/255", "2/255", "8/255", "16/255", "word"]


def test_epsilons_stand_by_their_logarithm() -> None:
    assert epsilon_places(["0.5/255", "2/255", "8/255"]) == pytest.approx([1, 2, 3])
    assert epsilon_places(["1/255", "2/255", "8/255"]) == pytest.approx([1, 1 + 2 / 3, 3])
    assert epsilon_places(["2/255"]) == [1]
    assert epsilon_places(["0", "1", "word"]) == [1, 2, 3]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12, unique=True))
def test_shades_follow_the_shares(shares: list[float]) -> None:
    columns = [str(i) for i in range(len(shares))]
    group = HeatGroup("a", {("x", column): share for column, share in zip(columns, shares)}, {})
    shown = heat_tables(["x"], columns, [group], corner="c", caption="d")
    shades = [float(value) for value in re.findall(r"rgba\(26,127,196,([\d.]+)\)", shown)]
    assert len(shades) == len(shares)
    ordered = [shade for _, shade in sorted(zip(shares, shades))]
    assert ordered == sorted(shades)


def test_wide_heat_maps_part_between_variants() -> None:
    columns = ["1", "2", "3", "4", "5"]
    groups = [HeatGroup(f"v{i}", {("fog", c): 0.1 * i for c in columns}, {}) for i in range(4)]
    shown = Page(heat_tables(["fog", "snow"], columns, groups, corner="c", caption="d"))
    assert [tag for tag, _ in shown.tags].count("table") == 2
    assert [attrs["colspan"] for _, attrs in shown.tags if "colspan" in attrs] == ["5"] * 4
    notes = [attrs["title"] for _, attrs in shown.tags if "title" in attrs]
    assert notes == ["not asked"] * 20
