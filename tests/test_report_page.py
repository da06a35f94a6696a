"""The report as text: what it says, that it is closed to the outside, and that no name can break out of it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report_sample import picture, sample_extras, sample_result

from seatrial.errors import BadInput
from seatrial.report.marks import COLORS
from seatrial.report.page import render
from seatrial.report.summary import headline, summary_rows
from seatrial.report.verdict import sentences, title

VOID = {"meta", "img", "br", "link", "input", "circle", "rect", "path"}


class Page(HTMLParser):
    """Every element of a page with its attributes, its texts, and whether elements are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        elif not self._open or self._open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).replace("\N{NO-BREAK SPACE}", " ").split())

    def ids(self) -> list[str]:
        return [attrs["id"] or "" for _, attrs in self.tags if "id" in attrs]


@pytest.fixture(scope="module")
def html() -> str:
    return render(sample_result(), sample_extras())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_equal_input_gives_equal_bytes(html: str) -> None:
    assert render(sample_result(), sample_extras()) == html
    assert render(json.loads(json.dumps(sample_result())), sample_extras()) == html


def test_arguments_are_left_alone() -> None:
    result, extras = sample_result(), sample_extras()
    render(result, extras)
    assert (result, extras) == (sample_result(), sample_extras())


def test_it_says_what_came_out(page: Page) -> None:
    assert "w8a8 on openvino: 2.4× faster, 3.9× smaller, top-1 −0.2 points" in page.words
    assert "squeezenet1_1 on imagenet_val_800 (800 samples): 1.34 ms instead of 3.21 ms" in page.words
    assert "The difference in top-1, sample by sample, is −1.1 to +0.6 (95 %)." in page.words
    assert "Mean change under noise: attack" in page.words


def test_it_ends_with_what_it_rests_on(page: Page) -> None:
    order = ["Settings", "Model and data", "Machine", "Warnings (1)", "Fallbacks (2)"]
    places = [page.words.rindex(head) for head in order]
    assert places == sorted(places)
    for said in ("AMX", "amx_bf16", "16.6 GB", "2026.4.1", "n01440764/ILSVRC_39.JPEG", "last layer", "never negative"):
        assert said.lower() in page.words.lower()


def test_cells_without_a_figure_are_shown_with_their_reasons(page: Page) -> None:
    for said in (
        "no noise both decoders give the same bytes",
        "failed PyAV cannot decode 3",
        "not applicable integers",
    ):
        assert said in page.words
    assert "Not timed: w8a8, simulated." in page.words


def test_every_figure_is_in_the_table(page: Page) -> None:
    cells = [cell for variant in sample_result()["variants"] for cell in variant["noise"]]
    assert f"All {len(cells)} figures as a table" in page.words


def test_ids_are_unique_and_links_lead_somewhere() -> None:
    page = Page(render(sample_result(full=True), sample_extras()))
    assert len(page.ids()) == len(set(page.ids()))
    links = [attrs["href"] or "" for tag, attrs in page.tags if tag == "a"]
    assert links
    assert all(link.startswith("#") and link[1:] in page.ids() for link in links)
    labels = [attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs]
    assert set(labels) <= set(page.ids())


def closed(page: Page) -> None:
    """A page loads nothing, and its policy allows its own scripts only."""
    for tag, attrs in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form", "video", "audio", "svg:image"}
        assert not [name for name in attrs if name.startswith("on")]
        assert "srcset" not in attrs
        assert "src" not in attrs or (tag == "img" and (attrs["src"] or "").startswith("data:image/png;base64,"))
        assert "href" not in attrs or (attrs["href"] or "").startswith("#")
    (policy,) = [a["content"] or "" for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'; ")
    script_src = re.findall(r"script-src ([^;]*)", policy)[0].split()
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts]
    assert script_src == [f"'sha256-{value}'" for value in hashes]


def test_it_loads_nothing(page: Page) -> None:
    closed(page)


def test_pictures_are_embedded(page: Page) -> None:
    shown = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(shown) == len(sample_extras()["pictures"])
    assert all(attrs["alt"] for attrs in shown)
    assert base64.b64decode((shown[0]["src"] or "").partition(",")[2]) == picture("")


def test_charts_and_pictures_have_texts(page: Page) -> None:
    charts = [attrs for _, attrs in page.tags if attrs.get("class") == "plot"]
    assert len(charts) == 5
    assert all(attrs["role"] == "img" and len(attrs["aria-label"] or "") > 40 for attrs in charts)
    assert any("w8a8 on openvino: 1.34 ms" in (attrs["aria-label"] or "") for attrs in charts)
    tables = [attrs for tag, attrs in page.tags if tag == "table"]
    assert len(tables) == len([tag for tag, _ in page.tags if tag == "caption"])
    assert all(attrs["scope"] in ("row", "col") for tag, attrs in page.tags if tag == "th")


ATTACKS = [
    "<script>document.title='broken'</script>",
    '"><img src=x onerror="document.title=1">',
    "</script><script>document.title='broken'</script>",
    "</style></title><svg onload=alert(1)>",
    '<a href="https://example.org/">x</a>',
    "javascript:alert(1)",
    "]]>--><!--",
    "%{x}<br>$\\alpha$",
    "\ud800\x00\u202e\x1b[31m",
    "' onmouseover='alert(1)",
]


def poisoned(value: Any, attack: str, keep: Callable[[str], bool] = lambda key: False) -> Any:
    """`value` with every text in it, keys of free mappings included, followed by an attack."""
    if isinstance(value, str):
        return value + attack
    if isinstance(value, list):
        return [poisoned(part, attack) for part in value]
    if not isinstance(value, dict):
        return value
    fixed = {"family", "status", "metric", "target", "bits"}
    poisoned_keys = {"settings", "libraries", "preprocessing"}
    result = {}
    for key, part in value.items():
        if key in fixed:
            result[key] = part
        elif key in poisoned_keys:
            result[key] = {f"{name}{attack}": poisoned(inner, attack) for name, inner in part.items()}
        else:
            result[key] = part if key == "png" else poisoned(part, attack)
    return result


@pytest.mark.parametrize("attack", ATTACKS)
def test_names_stay_text(attack: str) -> None:
    extras = {key: part for key, part in sample_extras().items() if key != "paired"}  # found by the name of a variant
    clean = Page(render(sample_result(full=True), extras))
    html = render(poisoned(sample_result(full=True), attack), poisoned(extras, attack))
    html.encode("utf-8")
    page = Page(html)
    closed(page)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in clean.tags]
    names = [sorted(attrs) for _, attrs in page.tags]
    assert names == [sorted(attrs) for _, attrs in clean.tags]
    assert len(page.scripts) == len(clean.scripts)


def test_charts_get_their_texts_escaped_twice(html: str) -> None:
    """Once for plotly, which reads HTML in labels, and once for the script element."""
    hostile = sample_result()
    hostile["variants"][0]["name"] = "<a href='https://example.org'>float</a>"
    scripts = Page(render(hostile, sample_extras())).scripts
    drawn = [script for script in scripts if "example.org" in script]
    assert drawn
    for script in drawn:
        assert not re.search(r"(<|\\u003c)a href", script)


TOLERATED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"variants": []}, {"pictures": [], "sites": []}),
    ({"variants": [{"name": "float", "target": "torch", "bits": "float32"}]}, {"sites": [{"site": "a"}]}),
    (
        {"variants": [{"name": "w8a8", "target": "x", "bits": "w8a8", "value": 1, "metric": "miou"}]},
        {"fallbacks": [None]},
    ),
    ({"model": "resnet", "data": "digits", "machine": None, "warnings": None, "variants": None}, {"settings": None}),
    ({"data": {"n": 0, "bad": [("a", "b"), "c", {}]}}, {"pictures": [{}, {"png": "!"}, {"png": b"GIF8"}]}),
]


@pytest.mark.parametrize(("result", "extras"), TOLERATED)
def test_missing_parts_leave_a_page(result: dict[str, Any], extras: dict[str, Any]) -> None:
    page = Page(render(result, extras))
    closed(page)
    assert "Settings" in page.words


def test_nothing_at_all_is_said() -> None:
    assert "Nothing was evaluated" in Page(render({}, {})).words


def test_a_picture_that_is_none_is_said() -> None:
    page = Page(render({}, {"pictures": [{"noise": "fgsm", "png": b"<svg/>", "label": "a", "float_answer": "b"}]}))
    assert "no picture: its data is no PNG" in page.words
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_an_unknown_family_is_refused() -> None:
    result = sample_result()
    result["variants"][0]["noise"][0]["family"] = "weather"
    with pytest.raises(BadInput, match="family 'weather'"):
        render(result, {})


def test_two_kinds_of_access_to_one_attack_stand_apart() -> None:
    result = sample_result()
    attacks = [cell for cell in result["variants"][2]["noise"] if cell["name"] == "pgd"]
    result["variants"][2]["noise"].append({**attacks[0], "access": "white-box", "value": 0.0123})
    page = Page(render(result, {}))
    charts = " ".join(attrs["aria-label"] or "" for _, attrs in page.tags if attrs.get("class") == "plot")
    assert "pgd · ε = 2/255, linf, transfer: w8a8 on openvino" in charts
    assert "pgd · ε = 2/255, linf, white-box: w8a8 on openvino 1.2 %" in charts


def variant(name: str, target: str, median: float | None, size: int, top1: float | None) -> dict[str, Any]:
    time = None if median is None else {"median": median, "p10": median, "p90": median, "runs": 9, "batch": 1}
    bits = "float32" if name == "float" else name
    return {"name": name, "target": target, "bits": bits, "size_bytes": size, "latency_ms": time, "top1": top1}


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ([], "Nothing was evaluated"),
        ([variant("float", "a", 2.0, 10, 0.5)], "float on a: 2.00 ms, top-1 50.0 %"),
        ([variant("float", "a", 2.0, 10, 0.5), variant("w8a8", "a", 3.0, 5, 0.51)],
         "w8a8 on a: 1.5× slower, 2.0× smaller, top-1 +1.0 points"),
        ([variant("float", "a", 2.0, 10, 0.5), variant("w8a8", "a", 2.01, 10, 0.5)],
         "w8a8 on a: as fast, as large, top-1 ±0.0 points"),
        ([variant("float", "a", 2.0, 10, 0.5), variant("w8a8", "a", None, 5, None)], "w8a8 on a: 2.0× smaller"),
        ([variant("float", "torch", 2.0, 10, 0.5), variant("w8a8", "torch", None, 5, 0.4),
          variant("w8a8", "b", 1.0, 5, 0.4)], "w8a8 on b: 1.00 ms, top-1 40.0 %"),
        ([variant("w8a8", "torch", None, 5, 0.4)], "w8a8, simulated: top-1 40.0 %"),
    ],
)  # fmt: skip
def test_verdicts(variants: list[dict[str, Any]], said: str) -> None:
    assert title(headline(summary_rows({"variants": variants}))) == said


def test_a_better_choice_is_named() -> None:
    variants = [
        variant("float", "a", 3.0, 10, 0.5),
        variant("bf16", "a", 1.0, 10, 0.5),
        variant("w8a8", "a", 2.0, 5, 0.49),
    ]
    rows = summary_rows({"variants": variants})
    said = " ".join(sentences({}, rows, headline(rows), {}))
    assert "Faster here and at least as accurate: bf16 on a with 1.00 ms and top-1 50.0 %." in said


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 1), st.floats(0.01, 1), st.lists(st.floats(0, 1), max_size=5))
def test_changes_are_against_the_own_clean_figure(base: float, own: float, values: list[float]) -> None:
    cells = [
        {"family": "corruption", "name": "fog", "severity": i, "value": v, "status": "done"}
        for i, v in enumerate(values)
    ]
    cells.append({"family": "corruption", "name": "snow", "value": None, "status": "failed"})
    result = {"variants": [variant("float", "a", 2, 10, base), {**variant("w8a8", "a", 1, 5, own), "noise": cells}]}
    row = summary_rows(result)[1]
    change = row.changes["corruption"]
    assert (change.done, change.asked) == (len(values), len(values) + 1)
    assert row.difference == own - base
    if values:
        assert change.mean == pytest.approx(sum(values) / len(values) - own)
        assert change.worst == pytest.approx(min(values) - own)
    else:
        assert change.mean is None


def luminance(color: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def palettes() -> list[dict[str, str]]:
    """The colors of the style sheet: light, dark by system, dark by choice, print."""
    css = (Path(__file__).resolve().parents[1] / "seatrial" / "report" / "page.css").read_text(encoding="utf-8")
    blocks = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in re.split(r"}", css)]
    return [block for block in blocks if "page" in block]


def test_colors_can_be_read_in_every_theme() -> None:
    found = palettes()
    assert len(found) == 4
    assert found[1] == found[2]
    for colors in found:
        for ground in ("page", "card", "soft"):
            for text in ("ink", "ink-2", "ink-3", "accent", "good", "bad"):
                assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground, colors)
        for mark in COLORS:
            assert contrast(mark, colors["card"]) >= 3
