"""The page of a search over precisions: it says what came out, holds no other figure, and no name breaks out of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ohq_result import FLOAT, INTEGER, kept_ohq, poisoned_ohq, ratio, sample_ohq, unknown_ohq
from test_report_browser import DARK, LIGHT, Browse, browse, chromium, drawn
from test_report_page import ATTACKS, Page, closed

from seatrial.quant.latency_model import Additivity
from seatrial.report.markup import plain
from seatrial.report.ohq_charts import CHOSEN, UNIFORM, answer_points, sensitivity_points
from seatrial.report.ohq_page import GATE_MAPE, GATE_SPEARMAN, render_ohq, write_ohq
from seatrial.report.ohq_strip import MOST_IN_BLOCK, blocks
from seatrial.report.ohq_wording import compared, interval, saving_ms, title, uniform_name
from seatrial.report.wording import milliseconds, significant, size

__all__ = ["browse", "chromium"]  # fixtures


@pytest.fixture(scope="module")
def html() -> str:
    return render_ohq(sample_ohq(blocks=5))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_sample_is_like_deit_tiny() -> None:
    assert len(sample_ohq()["groups"]) == 74


def test_it_says_what_came_out(page: Page) -> None:
    assert "4.16 ms in mixed precision, 18.4 % less time than bf16" in page.words
    assert (
        "The chosen network takes 18.4 % less time than bf16, the best uniform precision (95 % interval −19.6 to "
        "−17.2 %, 40 paired rounds), and 39.5 % less time than uniform int8" in page.words
    )
    assert "It answers as float does on 98.4 % of the samples, and its top-1 is 71.4 %" in page.words
    assert "−0.2 points against bf16 (95 % interval −0.9 to +0.5)" in page.words
    assert "Gate passed" in page.words
    assert "126 networks in 301 s" in page.words
    assert "This machine counts no energy." in page.words
    assert "simulated: " not in page.words


def test_it_is_closed_and_linked(page: Page) -> None:
    closed(page)
    assert len(page.ids()) == len(set(page.ids()))
    links = [attrs["href"] or "" for tag, attrs in page.tags if tag == "a"]
    assert len(links) > 5
    assert all(link[1:] in page.ids() for link in links)


def test_a_uniform_precision_that_was_kept_is_said() -> None:
    words = Page(render_ohq(kept_ohq())).words
    assert "5.10 ms in bf16: no mixture within the bounds was faster by more than the noise" in words
    unbound = {**kept_ohq(), "bounds": {"max_drop": None, "time_budget_s": 300}}
    assert title(unbound) == "5.10 ms in bf16: no mixture was faster by more than the noise"
    assert "Uniform bf16 takes 25.8 % less time than uniform int8" in words
    assert "chosen: bf16" in words


@pytest.mark.parametrize(("setting", "name"), [("f32", "ohq"), ("float32", "ohq"), ("bf16", "w8a8"), (None, "w8a8")])
def test_a_uniform_precision_that_bounds_ask_for_is_said(setting: str | None, name: str) -> None:
    result = kept_ohq()
    for group in result["groups"]:
        group["precision"] = INTEGER
    result["chosen"] |= {"setting": setting, "name": name, "ratio_vs_best_uniform": ratio(1.348)}
    page = Page(render_ohq(result))
    assert "w8a8: one precision for every operator" in page.words
    assert "Uniform w8a8 takes 34.8 % more time than bf16, the best uniform precision" in page.words


def test_simulation_is_marked_at_the_top_and_at_each_figure() -> None:
    result = sample_ohq(blocks=5, simulated="systolic 32x32")
    html = render_ohq(result)
    header, *rest = html.split("<section id=")
    assert "simulated: systolic 32x32" in header
    captions = re.findall(r"<figcaption>.*?</figcaption>", "".join(rest))
    assert len(captions) == html.count('class="plot"') == 5
    assert all("simulated: systolic 32x32" in caption for caption in captions)
    with_times = [s for s in rest if s.startswith(('"networks', '"front', '"network', '"costs', '"trust'))]
    assert len(with_times) == 5
    assert all("simulated: systolic 32x32" in section for section in with_times)


def test_equal_results_give_equal_bytes(html: str, tmp_path: Path) -> None:
    result = json.loads(json.dumps(sample_ohq(blocks=5)))
    assert write_ohq(result, tmp_path / "new" / "report.html") == tmp_path / "new" / "report.html"
    assert (tmp_path / "new" / "report.html").read_bytes() == html.encode()
    assert result == sample_ohq(blocks=5)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["report.html"]


def test_unknown_figures_leave_a_page() -> None:
    page = Page(render_ohq(unknown_ohq()))
    closed(page)
    assert "4.16 ms in mixed precision" in page.words
    assert "The predictions of the model were not put to a test." in page.words
    assert "Heights mean nothing: no share was measured." in page.words
    for word in ("None", "nan", "NaN"):
        assert word not in [text.strip() for text in page.text]
    assert "None" not in "".join(a.get("data-tip") or "" for _, a in page.tags)


@pytest.mark.parametrize("empty", ["pareto", "groups", "edges", "baselines", "warnings", "files"])
def test_empty_parts_leave_a_page(empty: str) -> None:
    result = sample_ohq(blocks=1)
    result[empty] = []
    closed(Page(render_ohq(result)))


def _figures(value: object) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _figures(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from map(str, value)
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value


class Cells(HTMLParser):
    """The texts of the cells of every table."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._in = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        scope = dict(attrs).get("scope")
        if tag == "td" or (tag == "th" and scope == "row"):
            self._in += 1
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in = 0

    def handle_data(self, data: str) -> None:
        if self._in:
            self.found[-1] += f" {data}"


def foreign(html: str, result: dict[str, Any]) -> list[str]:
    """The numbers in tables that are not a figure of the result, however it may be rounded."""
    known: set[str] = set()
    drawn_only = {"pareto", "search"}  # these are in charts, and would make the test accept more
    for value in _figures({key: part for key, part in result.items() if key not in drawn_only}):
        known |= {significant(value), significant(value, 2), milliseconds(value), f"{100 * value:.1f}", f"{value:.0f}"}
        known.add(size(value).split()[0])
    names = sorted(set(_texts(result)), key=len, reverse=True)
    found = []
    for cell in Cells(html).found:
        for name in names:
            cell = cell.replace(name, " ")
        found += [n for n in re.findall(r"\d[\d.,]*(?:e-?\d+)?", cell) if n not in known]
    return found


@pytest.mark.parametrize("result", [sample_ohq(blocks=4), kept_ohq(), sample_ohq(blocks=3, seed=7)])
def test_every_number_in_the_tables_comes_from_the_result(result: dict[str, Any]) -> None:
    html = render_ohq(result)
    assert len([cell for cell in Cells(html).found if re.search(r"\d", cell)]) > 150
    assert foreign(html, result) == []
    assert foreign(html.replace("3.27×", "3.28×"), result) == ["3.28"]


def test_the_networks_stand_beside_each_other(html: str) -> None:
    result = sample_ohq(blocks=5)
    cells = Cells(html).found[: 6 * 5]
    rows = [[" ".join(cell.split()) for cell in cells[i : i + 6]] for i in range(0, 30, 6)]
    own = size(result["size_bytes"])
    assert rows[0] == ["chosen: mixed", "4.16 4.07 to 4.33", "–", own, "71.4 %", "98.4 %"]
    held = [size(baseline["size_bytes"]) for baseline in result["baselines"]]
    assert rows[1:] == [
        ["float32", "13.6 13.3 to 14.2", "3.27× 3.26 to 3.29", held[0], "71.6 %", "100.0 %"],
        ["bf16", "5.10 4.99 to 5.31", "1.23× 1.21 to 1.24", held[1], "71.6 %", "99.4 %"],
        ["w8a8", "6.87 6.72 to 7.15", "1.65× 1.64 to 1.66", held[2], "70.8 %", "95.8 %"],
        ["w8a8+bf16", "5.64 5.52 to 5.88", "1.36× 1.34 to 1.37", held[3], "70.8 %", "95.7 %"],
    ]


def test_the_tables_hold_every_group_and_every_change(html: str) -> None:
    result = sample_ohq(blocks=5)
    costs = html.split('<section id="costs">')[1].split("</section>")[0]
    for group in result["groups"]:
        assert costs.count(f"<code>{group['name']}</code>") >= 1
        for cost in group["latency_ms"].values():
            assert f">{significant(cost)}</td>" in costs
    for edge in result["edges"]:
        assert f">{significant(edge['latency_ms'])}</td>" in costs


def test_costs_are_ranked_by_what_they_save(html: str) -> None:
    result = sample_ohq(blocks=5)
    listed = re.findall(r"<code>(.*?)</code>", html.split('<section id="costs">')[1].split("<details>")[0])
    savings = {group["name"]: saving_ms(group) for group in result["groups"]}
    assert [savings[name] for name in listed] == sorted((s for s in savings.values()), reverse=True)[: len(listed)]


def test_changes_in_the_chosen_network_are_told_apart(html: str) -> None:
    result = sample_ohq(blocks=5)
    chosen = {group["name"]: group["precision"] for group in result["groups"]}
    inside = [e for e in result["edges"] if [chosen[e["producer"]], chosen[e["reader"]]] == e["pair"]]
    every = html.split('<section id="costs">')[1].split("All 62 changes of precision</summary>")[1]
    assert 0 < len(inside) == every.split("</section>")[0].count(">yes</td>")


def test_sizes_that_are_unknown_take_no_room(html: str) -> None:
    result = sample_ohq(blocks=5)
    for group in result["groups"]:
        group["size_bytes"] = dict.fromkeys(group["size_bytes"])
    assert "w8a8, size" in html
    assert "w8a8, size" not in render_ohq(result)


def test_energy_is_shown_where_it_is_counted() -> None:
    result = sample_ohq(blocks=2)
    result["energy"] = {"counter": "rapl", "baselines": {"float32": 412.0, "bf16": None, "w8a8": 98.5, "ohq": 71.2}}
    html = render_ohq(result)
    assert "energy, mJ" in html
    assert [Cells(html).found[i].strip() for i in (6, 13)] == ["71.2", "412"]
    assert "This machine counts no energy" not in html


@pytest.mark.parametrize("attack", ATTACKS)
def test_names_stay_text(attack: str) -> None:
    clean = Page(render_ohq(poisoned_ohq(sample_ohq(blocks=2), "-x")))
    html = render_ohq(poisoned_ohq(sample_ohq(blocks=2), attack))
    html.encode("utf-8")
    page = Page(html)
    closed(page)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in clean.tags]
    assert [sorted(attrs) for _, attrs in page.tags] == [sorted(attrs) for _, attrs in clean.tags]
    assert len(page.scripts) == len(clean.scripts)
    assert [a["style"] for t, a in page.tags if "style" in a] == [a["style"] for t, a in clean.tags if "style" in a]
    shown = " ".join(f"patch_embed.proj/conv2d#0{plain(attack)}".split())
    assert shown in page.words
    for script in page.scripts[1:]:  # plotly reads HTML in its labels
        assert not re.search(r"(<|\\u003c)(a href|script|img|svg)", script)


def test_the_chart_of_the_front_marks_what_it_holds() -> None:
    result = sample_ohq(blocks=5)
    points = sensitivity_points(result)
    assert len(points) == len(result["pareto"])
    assert [p.label for p in points if p.kind == CHOSEN] == ["chosen"]
    assert {p.label for p in points if p.kind == UNIFORM} == {"bf16", "float32", "w8a8", "w8a8+bf16"}
    assert all(f"{e['integer_groups']} of 32 groups in integers" in p.said for p, e in zip(points, result["pareto"]))
    counted = answer_points(result, "agreement", "agreement")
    assert {p.label for p in counted if p.kind == UNIFORM} == {row["name"] for row in result["baselines"]}
    assert [p.x for p in counted if p.kind == CHOSEN] == [result["chosen"]["latency_ms"]["median"]]


def test_a_kept_precision_is_drawn_once() -> None:
    labels = [p.label for p in answer_points(kept_ohq(), "top1", "value") if p.label]
    assert sorted(labels) == ["chosen (bf16)", "float32", "w8a8", "w8a8+bf16"]


@settings(max_examples=60, deadline=None)
@given(st.floats(0.05, 5), st.floats(0, 0.5), st.floats(0, 0.5))
def test_ratios_are_read_as_they_lie(value: float, below: float, above: float) -> None:
    told = {"value": value, "low": value - below, "high": value + above, "n": 40}
    said = compared(told)
    if told["low"] <= 1 <= told["high"]:
        assert said == "as much time, within the noise, as"
    else:
        amount, word = said.split(" % ")
        assert float(amount) == pytest.approx(100 * abs(value - 1), abs=0.0501)
        assert word == f"{'less' if value < 1 else 'more'} time than"
    ends = re.search(r"interval (.*) to (.*) %, 40", interval(told).replace("−", "-").replace("±", ""))
    assert ends is not None
    assert [float(end) for end in ends.groups()] == pytest.approx(
        [100 * (told["low"] - 1), 100 * (told["high"] - 1)], abs=0.0501
    )


def test_a_difference_within_the_noise_is_none() -> None:
    result = sample_ohq(blocks=1)
    result["chosen"]["ratio_vs_best_uniform"] = {"value": 0.995, "low": 0.985, "high": 1.004, "n": 40}
    assert title(result) == "4.16 ms in mixed precision, as much time, within the noise, as bf16"


@pytest.mark.parametrize(
    ("groups", "setting", "name"),
    [
        ({"a": FLOAT, "b": FLOAT}, "bf16", "bf16"),
        ({"a": FLOAT}, "f32", "float32"),
        ({"a": FLOAT}, None, "float"),
        ({"a": INTEGER, "b": INTEGER}, "bf16", "w8a8+bf16"),
        ({"a": INTEGER}, "f32", "w8a8"),
        ({"a": INTEGER, "b": FLOAT}, "bf16", None),
        ({}, "bf16", None),
    ],
)
def test_uniform_choices_have_names(groups: dict[str, str], setting: str | None, name: str | None) -> None:
    assert uniform_name(groups, setting) == name


NAME = st.lists(st.sampled_from(["blocks", "layers", "0", "1", "2", "attn", "fc1"]), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(NAME.map(lambda parts: ".".join(parts) + "/linear#0"), max_size=60))
def test_blocks_hold_every_group_once(names: list[str]) -> None:
    assert sum(count for _, count in blocks(names)) == len(names)


def test_blocks_follow_the_names() -> None:
    assert [label for label, _ in blocks([g["name"] for g in sample_ohq(blocks=3)["groups"]])] == [
        "patch_embed", "blocks.0", "blocks.1", "blocks.2", "head",
    ]  # fmt: skip
    deep = [f"layers.{i}.blocks.{j}.fc{k}/linear#0" for i in range(2) for j in range(6) for k in range(4)]
    assert blocks(deep) == [(f"blocks.{j}", 4) for _ in range(2) for j in range(6)]
    assert max(count for _, count in blocks(deep)) <= MOST_IN_BLOCK
    assert blocks(["conv_a/conv2d#0", "conv_b/conv2d#0", "conv_c/conv2d#0"]) == [("", 3)]


def test_bars_are_as_high_as_their_shares(html: str) -> None:
    groups = sample_ohq(blocks=5)["groups"]
    bars = re.findall(r'<b style="height:(\d+)px;background:(#\w+)">', html)
    assert len(bars) == len(groups)
    most = max(group["share"] for group in groups)
    assert [int(h) for h, _ in bars] == [max(3, round(76 * group["share"] / most)) for group in groups]
    assert len({(color, group["precision"]) for (_, color), group in zip(bars, groups)}) == 2


@pytest.mark.parametrize(
    ("rank", "error", "trusted"),
    [
        (GATE_SPEARMAN, GATE_MAPE + 0.01, True),
        (GATE_SPEARMAN - 1e-6, 0.0, False),
        (1.0, GATE_MAPE + 0.0101, False),
    ],
)
def test_the_gate_is_the_one_of_the_search(rank: float, error: float, trusted: bool) -> None:
    assert Additivity(rank, error, 0.01, ()).trusted == trusted


def test_a_missed_gate_is_said() -> None:
    result = sample_ohq(blocks=2)
    result["additivity"] |= {"spearman": 0.42, "trusted": False}
    words = Page(render_ohq(result)).words
    assert "Gate missed" in words
    assert "costs of single groups are no more than a hint here" in words


@pytest.mark.browser
def test_every_chart_draws(browse: Browse) -> None:
    result = sample_ohq(blocks=33)
    charts = drawn(browse, render_ohq(result), LIGHT).charts
    assert list(charts) == [f"chart-{n}" for n in ("sensitivity", "agreement", "value", "additivity", "search")]
    assert all(chart.layers >= 2 and chart.width > 350 for chart in charts.values())
    assert charts["chart-sensitivity"].points == len(result["pareto"])
    assert charts["chart-search"].points == len(result["search"]["steps"])
    assert charts["chart-additivity"].points == len(result["additivity"]["assignments"])
    assert charts["chart-additivity"].lines == 1


@pytest.mark.browser
def test_names_run_nothing(browse: Browse) -> None:
    attack = "\"'</title></script><script>document.title='broken'</script>"
    attack += (
        "<img src='https://example.org/x.png' onerror=\"document.title='broken'\"><a href='https://example.org'>a</a>"
    )
    dom = drawn(browse, render_ohq(poisoned_ohq(sample_ohq(blocks=2), attack)), DARK)
    assert dom.title != "broken"
    assert len(dom.charts) == 5
    assert all(chart.layers >= 2 for chart in dom.charts.values())
