"""Natural and systematic robustness against printed tables; summaries and signs of masked gradients."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.core.chance import generator
from seatrial.core.noise import NoiseSpec
from seatrial.errors import BadInput
from seatrial.metrics.corruption_error import (
    ALEXNET_ERROR,
    mean_corruption_error,
    natural_robustness,
    relative_mean_corruption_error,
)
from seatrial.metrics.masking import masking_findings
from seatrial.metrics.summary import magnitude, summarize
from seatrial.metrics.systematic import drop, drops, systematic_robustness

# Top-1 in percent, severities 1 to 5, on 5,000 pictures with the official files: RobustBench,
# model_info/imagenet/corruptions/unaggregated_results.csv.
ALEXNET = """31.10 18.14 7.24 2.14 0.58|29.44 15.98 7.26 1.96 1.20|22.34 11.54 5.56 1.40 0.54
34.04 26.20 15.02 8.50 5.22
34.86 24.12 11.26 8.00 6.36|41.74 29.50 17.94 10.22 6.98|30.28 23.08 19.36 16.30 13.12|27.88 11.40 13.20 8.50 5.02
37.88 19.76 10.52 9.94 6.16|31.54 23.24 15.70 12.14 5.56|55.04 51.40 46.40 38.86 29.06|34.96 23.34 10.94 2.66 0.94
47.10 30.22 44.00 35.68 18.98|47.54 45.02 26.70 12.88 8.58|48.58 45.22 42.28 34.88 25.64"""
RESNET50 = """60.20 48.78 31.24 14.22 2.88|58.28 44.86 28.56 10.26 3.52|48.54 38.62 29.04 11.30 2.44
59.14 51.54 38.08 27.52 18.24|53.62 39.74 17.08 13.06 10.34|63.60 53.42 37.54 21.58 14.52
52.58 43.02 35.60 28.44 21.94
54.68 31.20 34.94 23.44 16.50
61.06 43.66 30.64 28.64 22.58|60.92 56.00 46.74 40.24 23.60
73.60 72.22 69.58 64.96 58.86
64.28 58.24 46.60 20.98 5.42|66.84 45.14 54.56 41.22 17.02
63.80 64.34 45.98 29.30 20.88|66.44 62.34 60.04 47.86 32.54"""


def accuracies(text: str) -> dict[tuple[str, int], float]:
    rows = [[float(value) / 100 for value in row.split()] for row in text.replace("\n", "|").split("|")]
    return {(name, i + 1): row[i] for name, row in zip(ALEXNET_ERROR, rows, strict=True) for i in range(5)}


def test_alexnet_against_itself_is_near_100_percent() -> None:
    assert mean_corruption_error(accuracies(ALEXNET)) == pytest.approx(99.97, abs=0.01)
    assert natural_robustness(accuracies(ALEXNET)) == pytest.approx(0.2112, abs=5e-5)
    assert relative_mean_corruption_error(accuracies(ALEXNET), 0.56522) == pytest.approx(100, abs=0.2)


def test_resnet_50_has_its_known_error() -> None:
    assert mean_corruption_error(accuracies(RESNET50)) == pytest.approx(76.4, abs=0.05)
    assert natural_robustness(accuracies(RESNET50)) == pytest.approx(0.3948, abs=5e-5)


def test_a_missing_cell_is_named() -> None:
    known = accuracies(ALEXNET)
    del known["fog", 4]
    with pytest.raises(BadInput, match="fog at severity 4"):
        natural_robustness(known)


@pytest.mark.parametrize(
    ("row", "mean", "deviation"),
    [  # SysNoise (Wang et al. 2023), table 7: PIL-bilinear, PIL-nearest, CV-bilinear, mix; table 8: Pillow, mix
        ((76.572, 72.168, 76.512, 72.090, 75.346, 74.072), 74.460, 2.02),
        ((74.872, 75.988, 75.548, 75.970, 76.002, 76.056), 75.739, 0.463),
        ((75.840, 75.268, 76.446, 75.248, 76.682, 76.436), 75.987, 0.629),
        ((76.154, 75.876, 76.344, 75.786, 76.444, 76.330), 76.156, 0.270),
        ((76.430, 76.426, 75.310), 76.055, 0.645),
        ((76.530, 76.524, 76.414), 76.489, 0.0653),
    ],
)
def test_systematic_robustness_is_that_of_the_printed_tables(
    row: tuple[float, ...], mean: float, deviation: float
) -> None:
    found = systematic_robustness(row)
    assert found[0] == pytest.approx(mean, abs=1e-3)
    assert found[1] == pytest.approx(deviation, rel=3e-3)
    assert systematic_robustness(row, ddof=0)[1] < found[1]


def records(correct: np.ndarray, **columns: object) -> pa.Table:
    ids = [f"{i:04d}" for i in range(len(correct))]
    answer = np.where(correct, 1, 0).astype(np.int32)
    return pa.table({"sample": ids, "correct": correct.astype(bool), "answer": answer, **columns})


def drawn(seed: int, count: int, share: float) -> np.ndarray:
    return generator(seed, "drawn", share).random(count) < share


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(4, 60))
def test_a_summary_does_not_depend_on_the_order_of_records(seed: int, count: int) -> None:
    clean = records(np.r_[True, drawn(seed, count - 1, 0.8)])
    weak, strong = (
        NoiseSpec("attack", "fgsm", norm="linf", severity="2/255"),
        NoiseSpec("attack", "pgd", norm="linf", severity="2/255"),
    )
    tables = {
        None: clean,
        weak: records(drawn(seed, count, 0.6)),
        strong: records(drawn(seed + 1, count, 0.4)),
        NoiseSpec("system", "decoder", "pyav"): records(drawn(seed + 2, count, 0.7)),
    }
    found = summarize(tables, rng=generator(seed), resamples=50)
    order = pa.array(generator(seed, "order").permutation(count))
    mixed = summarize({spec: table.take(order) for spec, table in tables.items()}, rng=generator(seed), resamples=50)
    assert mixed == found
    assert found["WCAR"]["middle"] <= min(found["AR"]["fgsm:linf"]["2/255"], found["AR"]["pgd:linf"]["2/255"])
    assert found["NR"] is None
    assert found["SR_mean"] is None
    low, high = (found["intervals"]["WCAR"]["middle"][end] for end in ("low", "high"))
    assert 0 <= low <= high <= 1


def test_a_whole_summary_has_every_figure() -> None:
    count = 40
    clean = records(drawn(1, count, 0.9))
    tables: dict[NoiseSpec | None, pa.Table] = {None: clean}
    for i, name in enumerate(ALEXNET_ERROR):
        for severity in range(1, 6):
            tables[NoiseSpec("corruption", name, severity=severity)] = records(drawn(i, count, 0.9 - 0.1 * severity))
    for option in ("pillow+opencv-area", "pyav+opencv-area", "pyav+pillow-box"):
        tables[NoiseSpec("system", "decoder+resize", option)] = records(drawn(len(option), count, 0.85))
    link = NoiseSpec("system", "decoder+resize", "pyav+pillow-box")
    found = summarize(tables, chain=[(link, tables[link])], rng=generator(0), resamples=100)
    assert found["SR_cells"] == 3
    values = [np.mean(tables[s]["correct"].to_numpy()) for s in tables if s is not None and s.name == "decoder+resize"]
    assert found["SR_std"] == pytest.approx(np.std(values, ddof=1))
    assert found["combined_drop"] == pytest.approx(np.mean(clean["correct"].to_numpy()) - values[2])
    assert found["chain"][0]["noise"] == "resize"
    for name in ("NR", "mCE"):
        assert found["intervals"][name]["low"] <= found[name] <= found["intervals"][name]["high"]


def test_drops_take_the_first_of_equal_options() -> None:
    clean = records(np.ones(10, bool))
    one, other = (NoiseSpec("system", "resize", name) for name in ("pillow-box", "opencv-area"))
    worse = records(np.r_[np.ones(7, bool), np.zeros(3, bool)])
    (found,) = drops({one: drop(clean, worse), other: drop(clean, worse)})
    assert found.worst == one
    assert found.mean == found.most == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("norm", "severity", "name"),
    [
        ("linf", "0.5/255", "small"),
        ("l2", "2@224", "middle"),
        ("l1", "1600@224", "large"),
        ("linf", "4/255", "4/255"),
        ("l2", "2", "l2 2"),  # another budget than 2@224 at any size but that
        ("l1", "1@224", "l1 1@224"),
    ],
)
def test_magnitudes_are_those_of_robustmq(norm: str, severity: str, name: str) -> None:
    assert magnitude(NoiseSpec("attack", "pgd", norm=norm, severity=severity)) == name


def test_a_weaker_attacker_that_wins_is_a_sign_of_masked_gradients() -> None:
    clean = records(np.ones(100, bool))
    budget = {"norm": "linf", "severity": "8/255"}
    zeros = np.full(100, 0.9, np.float32)
    strong = records(np.arange(100) < 60, zero_gradient=zeros)
    transfer = records(np.arange(100) < 40, zero_gradient=np.zeros(100, np.float32))
    blind = records(np.arange(100) < 61, zero_gradient=np.full(100, np.nan, np.float32))
    tables = {
        None: clean,
        NoiseSpec("attack", "pgd", **budget): strong,
        NoiseSpec("attack", "pgd", option="from-float", **budget): transfer,
        NoiseSpec("attack", "square", **budget): blind,
        NoiseSpec("attack", "square", norm="linf", severity="2/255"): transfer,
    }
    found = masking_findings(tables)
    assert [entry["sign"] for entry in found] == ["zero gradients", "weaker attacker wins"]
    assert found[1]["by"] == "pgd"
    assert found[1]["value"] == pytest.approx(0.2)
    assert masking_findings({None: clean}) == []
    # One step that takes down more than many is a sign, many that take down more than one are none.
    one, many = NoiseSpec("attack", "fgsm", **budget), NoiseSpec("attack", "mim", **budget)
    calm = np.zeros(100, np.float32)
    weak, iterated = records(np.arange(100) < 30, zero_gradient=calm), records(np.arange(100) < 50, zero_gradient=calm)
    (sign,) = masking_findings({None: clean, one: weak, many: iterated})
    assert (sign["attack"], sign["by"], sign["value"]) == ("mim", "fgsm", pytest.approx(0.2))
    assert "takes one step" in sign["text"]
    assert masking_findings({None: clean, one: iterated, many: weak}) == []
