"""Two runs compared: figures against counting by hand, and a page that is as closed as the report's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_report_page import Page, closed
from test_report_sample import sample_result

from seatrial.core.chance import generator
from seatrial.core.noise import NoiseSpec
from seatrial.core.task import Classification
from seatrial.errors import BadInput
from seatrial.report.compare import MOST_FLIPPED, Question, compare

CLEAN = Question("w8a8", "openvino")
NOISES = [
    CLEAN,
    Question("float", "openvino"),
    Question("w8a8", "openvino", NoiseSpec("attack", "pgd", norm="linf", severity="2/255")),
    Question("w8a8", "openvino", NoiseSpec("corruption", "motion_blur", severity=3)),
    Question("w8a8", "openvino", NoiseSpec("system", "resize", option="opencv-nearest")),
]


def records(accuracy: float, name: str, count: int = 800, prefix: str = "n0/") -> pa.Table:
    rng = generator(1, name)
    labels = generator(1, "labels").integers(0, 50, count)
    right = generator(1, "hardness").random(count) + rng.normal(0, 0.03, count) < accuracy
    answers = np.where(right, labels, (labels + 1) % 50)
    columns = {
        "sample": [f"{prefix}{i:05}.JPEG" for i in range(count)],
        "label": labels,
        "answer": answers,
        "correct": right,
        "in_top5": right,
        "confidence": np.full(count, 0.5),
        "margin": np.zeros(count),
    }
    return pa.table(columns, schema=Classification.SCHEMA)


def sample_comparison() -> tuple[str, dict[str, Any]]:
    a = {question: records(0.6 - 0.1 * i, f"a{i}") for i, question in enumerate(NOISES)}
    b = {question: records(0.6 - 0.1 * i + 0.03 * (i > 1), f"b{i}") for i, question in enumerate(NOISES)}
    b[Question("w4a8", "openvino")] = records(0.4, "w4a8")
    other = sample_result()
    other["variants"][2]["latency_ms"]["median"] = 1.1
    return compare(sample_result(), other, a, b)


def test_a_pair_is_counted_sample_by_sample() -> None:
    html, found = sample_comparison()
    assert len(found["pairs"]) == len(NOISES)
    a, b = records(0.6, "a0").to_pandas(), records(0.6, "b0").to_pandas()
    pair = found["pairs"][0]
    assert pair["a"] == a.correct.mean()
    assert pair["b"] == b.correct.mean()
    assert pair["difference"] == pytest.approx(b.correct.mean() - a.correct.mean())
    assert pair["gained"] == (b.correct & ~a.correct).sum()
    assert pair["lost"] == (a.correct & ~b.correct).sum()
    assert pair["agreement"] == (a.answer == b.answer).mean()
    assert pair["flipped_total"] == pair["gained"] + pair["lost"]
    assert pair["low"] < pair["difference"] < pair["high"]
    turned = a[a.correct != b.correct]
    assert [row["sample"] for row in pair["flipped"]] == turned["sample"].tolist()[:MOST_FLIPPED]
    assert all((row["turned"] == "right") == (row["b"] == row["label"]) for row in pair["flipped"])
    assert found["latency"][2] == {
        "variant": "w8a8", "target": "openvino", "a": 1.34, "b": 1.1, "speedup": pytest.approx(1.34 / 1.1),
    }  # fmt: skip
    assert (found["only_a"], found["only_b"]) == ([], ["w4a8 on openvino, clean"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    page = Page(html)
    closed(page)
    assert "Answered by B only" in page.words
    assert len(page.ids()) == len(set(page.ids()))


def test_equal_input_gives_equal_output_whatever_the_order_of_the_rows() -> None:
    a, b = {CLEAN: records(0.6, "a")}, {CLEAN: records(0.5, "b")}
    first = compare({}, {}, a, b)
    assert compare({}, {}, a, b) == first
    order = generator(0).permutation(800)
    assert compare({}, {}, {CLEAN: a[CLEAN].take(order)}, b) == first


def test_swapping_the_runs_swaps_the_signs() -> None:
    a, b = {CLEAN: records(0.6, "a")}, {CLEAN: records(0.5, "b")}
    (one,), (other,) = compare({}, {}, a, b)[1]["pairs"], compare({}, {}, b, a)[1]["pairs"]
    assert one["difference"] == -other["difference"]
    assert one["low"] == pytest.approx(-other["high"])
    assert (one["gained"], one["lost"]) == (other["lost"], other["gained"])


def test_a_run_against_itself_does_not_differ() -> None:
    a = {CLEAN: records(0.6, "a")}
    html, found = compare(sample_result(), sample_result(), a, a)
    assert found["pairs"][0]["difference"] == 0
    assert found["pairs"][0]["agreement"] == 1
    assert found["warnings"] == []
    assert "None: every sample" in Page(html).words


def test_at_most_fifty_samples_are_listed() -> None:
    html, found = compare({}, {}, {CLEAN: records(0.8, "a")}, {CLEAN: records(0.2, "b")})
    (pair,) = found["pairs"]
    assert len(pair["flipped"]) == MOST_FLIPPED < pair["flipped_total"]
    assert "the first 50 listed" in Page(html).words


def test_what_is_not_alike_is_said() -> None:
    other = sample_result()
    other["data"]["digest"] = "00"
    other["machine"]["cpu"] = "another"
    a = {CLEAN: records(0.6, "a", 700), NOISES[1]: records(0.6, "c")}
    b = {CLEAN: records(0.6, "b", 800), NOISES[1]: records(0.6, "c", prefix="elsewhere/")}
    _, found = compare(sample_result(), other, a, b)
    said = " ".join(found["warnings"])
    assert "different data" in said
    assert "different processors" in said
    assert "w8a8 on openvino, clean: 100 samples are in one run only" in said
    assert "float on openvino, clean: no sample in common" in said
    assert [pair["n"] for pair in found["pairs"]] == [700]


def test_nothing_in_common_leaves_a_page() -> None:
    html, found = compare({}, {}, {}, {CLEAN: records(0.5, "b")})
    assert found["pairs"] == []
    assert "Nothing to compare" in Page(html).words


def test_a_sample_that_stands_twice_is_refused() -> None:
    table = records(0.5, "a", 5)
    with pytest.raises(BadInput, match="stands 2 times"):
        compare({}, {}, {CLEAN: pa.concat_tables([table, table])}, {CLEAN: table})


def test_names_stay_text() -> None:
    attack = "</script><img src=x onerror=alert(1)>"
    question = Question(f"w8a8{attack}", "openvino", NoiseSpec("system", attack, option=attack))
    table = records(0.6, "a", 90, prefix=attack)
    html, _ = compare({"model": attack}, {}, {question: table}, {question: records(0.3, "b", 90, prefix=attack)})
    page = Page(html)
    closed(page)
    assert not [tag for tag, _ in page.tags if tag == "img"]
