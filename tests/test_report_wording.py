"""Figures in words: rounding, signs and units, and text that cannot be markup."""

from __future__ import annotations

import html
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.core.noise import NoiseSpec
from seatrial.report import wording
from seatrial.report.intervals import ends, whiskers
from seatrial.report.markup import chart_text, escaped, plain, shortened, table, worded
from seatrial.report.severity_chart import order


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (wording.figure(0.5763, "top1"), "57.6 %"),
        (wording.figure(0.5763, "perplexity"), "0.576"),
        (wording.figure(None, "top1"), "–"),
        (wording.change(-0.0025, "top1"), "−0.2"),
        (wording.change(0.0125, "top1"), "+1.2"),
        (wording.change(-0.0004, "top1"), "±0.0"),
        (wording.change(12.3456, "perplexity"), "+12.3"),
        (wording.change_span(-0.011, 0.007, "top1"), "−1.1 to +0.7"),
        (wording.span(0.5, 0.6, "top1"), "50.0 to 60.0"),
        (wording.span(None, 0.6, "top1"), ""),
        (wording.milliseconds(1.3), "1.30"),
        (wording.milliseconds(0.04567), "0.0457"),
        (wording.milliseconds(1234.5), "1234"),
        (wording.significant(0.0), "0"),
        (wording.significant(1e-9), "1.00e-09"),
        (wording.size(999), "999 B"),
        (wording.size(999_600), "1.00 MB"),
        (wording.size(1_281_022), "1.28 MB"),
        (wording.size(4e15), "4000 TB"),
        (wording.ratio(2.396), "2.4×"),
        (wording.ratio(0.5), "0.50×"),
        (wording.ratio(None), "–"),
        (wording.noise_title(NoiseSpec("attack", "pgd", norm="linf", severity="2/255")), "pgd · ε = 2/255, linf"),
        (wording.noise_title(NoiseSpec("corruption", "fog", severity=3)), "fog · severity 3"),
        (wording.noise_title(NoiseSpec("system", "resize", option="opencv-area")), "resize · opencv-area"),
        (wording.noise_title(NoiseSpec("system", "precision")), "precision"),
        (worded([1, "a"]), "1, a"),
        (worded({}), "–"),
        (worded(True), "yes"),
        (worded({"a": [1]}), '{"a": [1]}'),
    ],
)
def test_words(call: str, said: str) -> None:
    assert call == said


@given(st.floats(-1e8, 1e8))
def test_three_digits_are_within_half_a_percent(value: float) -> None:
    assert math.isclose(float(wording.significant(value)), value, rel_tol=0.0051)


@pytest.mark.parametrize("other", [None, True, math.nan, math.inf, "0.5", [0.5]])
def test_only_numbers_are_figures(other: object) -> None:
    assert wording.finite(other) is None


@given(st.text())
def test_escaped_text_is_text(text: str) -> None:
    found = escaped(text)
    assert not set("<>\"'") & set(found)
    assert html.unescape(found) == plain(text)
    found.encode("utf-8")
    assert not set("<>") & set(chart_text(text))


@given(st.text(), st.integers(3, 40))
def test_long_text_is_cut(text: str, most: int) -> None:
    assert len(plain(text, most)) <= most
    short = shortened(text, most)
    assert (
        short == text if len(text) <= most else (len(short) == most and short[0] == text[0] and short[-1] == text[-1])
    )


def test_a_table_names_its_rows_and_cells() -> None:
    found = table(["a<b", "n"], [["<b>x</b>", "1"]], caption="c&d", numeric=(1,))
    assert '<th scope="row" role="rowheader"><b>x</b></th>' in found
    assert '<td role="cell" data-label="n" class="num">1</td>' in found
    assert "a&lt;b" in found
    assert "c&amp;d" in found


def test_severities_are_in_order() -> None:
    assert sorted(["8/255", "1/255", "16/255", "x", "2/255", "1/0"], key=order) == [
        "1/255", "2/255", "8/255", "16/255", "1/0", "x",
    ]  # fmt: skip
    assert sorted([5, 3, 1], key=order) == [1, 3, 5]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.3), st.floats(0, 0.3)), max_size=8))
def test_axes_hold_every_interval(rows: list[tuple[float, float, float]]) -> None:
    reaches = [(value, value - down, value + up) for value, down, up in rows]
    low, high = ends(reaches, scale=100)
    assert low < high
    assert all(low < 100 * reach[1] and 100 * reach[2] < high for reach in reaches)


def test_whiskers_have_no_length_without_ends() -> None:
    bars = whiskers([(0.5, 0.4, 0.7), (0.5, None, None), (None, None, None)], "#000000", scale=100)
    assert bars["array"] == pytest.approx([20, 0, 0])
    assert bars["arrayminus"] == pytest.approx([10, 0, 0])
