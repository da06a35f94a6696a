"""Intervals against SciPy, against exact enumeration of what they cover, and against plain resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from seatrial.core.chance import generator
from seatrial.errors import BadInput
from seatrial.metrics.intervals import (
    Interval,
    PairedDifference,
    bootstrap_mean_difference,
    median_interval,
    paired_difference,
    wilson,
)


@given(st.integers(1, 2000), st.floats(0, 1), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_is_scipys(n: int, part: float, confidence: float) -> None:
    k = round(part * n)
    oracle = binomtest(k, n).proportion_ci(confidence, method="wilson")
    found = wilson(k, n, confidence)
    assert found.low == pytest.approx(oracle.low, abs=1e-12)
    assert found.high == pytest.approx(oracle.high, abs=1e-12)
    assert 0 <= found.low <= k / n <= found.high <= 1


@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_is_symmetric(n: int, part: float) -> None:
    k = round(part * n)
    one, other = wilson(k, n), wilson(n - k, n)
    assert one.low == pytest.approx(1 - other.high, abs=1e-12)


def test_wilson_of_a_textbook() -> None:
    # Newcombe 1998, table I: 81 of 263 has 0.2553 to 0.3662, and 15 of 148 has 0.0624 to 0.1605.
    assert [round(x, 4) for x in (wilson(81, 263).low, wilson(81, 263).high)] == [0.2553, 0.3662]
    assert [round(x, 4) for x in (wilson(15, 148).low, wilson(15, 148).high)] == [0.0624, 0.1605]


@pytest.mark.parametrize(("k", "n", "confidence"), [(0, 0, 0.95), (5, 4, 0.95), (-1, 4, 0.95), (1, 4, 1.0)])
def test_no_interval_without_a_share(k: int, n: int, confidence: float) -> None:
    with pytest.raises(BadInput):
        wilson(k, n, confidence)


def pair(gained: int, lost: int, both: int, neither: int, seed: int = 0, resamples: int = 2000) -> PairedDifference:
    before = np.array([False] * gained + [True] * lost + [True] * both + [False] * neither)
    after = np.array([True] * gained + [False] * lost + [True] * both + [False] * neither)
    return paired_difference(before, after, rng=generator(seed), resamples=resamples)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200), st.integers(1, 200))
def test_paired_difference_is_consistent(gained: int, lost: int, both: int, neither: int) -> None:
    found = pair(gained, lost, both, neither, resamples=400)
    n = gained + lost + both + neither
    assert (found.n, found.gained, found.lost) == (n, gained, lost)
    assert found.difference == pytest.approx(found.after - found.before)
    assert found.low <= found.difference <= found.high
    assert -found.difference <= found.drop_at_most <= -found.low
    assert found.bootstrap.low <= found.bootstrap.high
    mirrored = pair(lost, gained, both, neither)
    assert mirrored.low == pytest.approx(-found.high)
    assert mirrored.high == pytest.approx(-found.low)


def test_paired_difference_depends_on_the_counts_and_its_seed_alone() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(300) < 0.7, rng.random(300) < 0.6
    order = rng.permutation(300)
    one = paired_difference(before, after, rng=generator(4))
    assert one == paired_difference(before[order], after[order], rng=generator(4))
    drawn = {paired_difference(before, after, rng=generator(seed), resamples=9).bootstrap for seed in range(5)}
    assert len(drawn) > 1


@pytest.mark.parametrize(("n", "gain", "loss"), [(40, 0.02, 0.05), (60, 0.1, 0.1), (80, 0.01, 0.01), (50, 0.2, 0.05)])
def test_intervals_cover_as_often_as_they_say(n: int, gain: float, loss: float) -> None:
    """Sum the exact chance of every outcome whose interval holds the truth."""
    stay = 1 - gain - loss
    truth, two_sided, one_sided = gain - loss, 0.0, 0.0
    for g in range(n + 1):
        for k in range(n + 1 - g):
            chance = math.comb(n, g) * math.comb(n - g, k) * gain**g * loss**k * stay ** (n - g - k)
            if chance < 1e-9:
                continue
            found = pair(g, k, n - g - k, 0, resamples=1)
            two_sided += chance * (found.low <= truth <= found.high)
            one_sided += chance * (-truth <= found.drop_at_most)
    assert two_sided >= 0.94
    assert one_sided >= 0.93


def test_equal_answers_still_leave_doubt() -> None:
    found = pair(0, 0, 10, 0)
    assert found.difference == 0
    assert found.low < -0.05
    assert found.drop_at_most > 0.05


def test_both_intervals_agree_on_many_samples() -> None:
    found = pair(gained=70, lost=90, both=1400, neither=440, resamples=20_000)
    assert found.bootstrap.low == pytest.approx(found.low, abs=0.001)
    assert found.bootstrap.high == pytest.approx(found.high, abs=0.001)
    assert found.bootstrap_drop_at_most == pytest.approx(found.drop_at_most, abs=0.001)


def test_bootstrap_of_counts_is_the_bootstrap_of_samples() -> None:
    found = pair(gained=6, lost=14, both=60, neither=20, resamples=40_000)
    steps = np.array([1] * 6 + [-1] * 14 + [0] * 80)
    drawn = steps[np.random.default_rng(3).integers(0, 100, (40_000, 100))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.bootstrap.low == pytest.approx(low, abs=0.011)  # one sample more or less is 0.01
    assert found.bootstrap.high == pytest.approx(high, abs=0.011)


def test_bootstrap_of_means_is_near_the_normal_interval() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(3, 1, 900)
    after = before + rng.normal(0.2, 0.5, 900)
    found = bootstrap_mean_difference(before, after, rng=generator(0), resamples=4000)
    difference = after - before
    spread = 1.96 * difference.std(ddof=1) / 30
    assert found.low == pytest.approx(difference.mean() - spread, abs=0.003)
    assert found.high == pytest.approx(difference.mean() + spread, abs=0.003)
    assert found == bootstrap_mean_difference(before, after, rng=generator(0), resamples=4000)


def test_constant_differences_have_no_spread() -> None:
    before = np.arange(5.0)
    found = bootstrap_mean_difference(before, before + 0.25, rng=generator(0), resamples=50)
    assert (found.low, found.high) == (0.25, 0.25)


@pytest.mark.parametrize(("before", "after"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [math.nan])])
def test_values_that_do_not_pair_are_refused(before: list[float], after: list[float]) -> None:
    with pytest.raises(BadInput):
        bootstrap_mean_difference(np.array(before), np.array(after), rng=generator(0))
    if len(before) != 1 or len(after) != 1:
        with pytest.raises(BadInput):
            paired_difference(np.array(before, bool), np.array(after, bool), rng=generator(0))


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_interval_of_a_median_covers_as_often_as_exact_sums_say(confidence: float) -> None:
    """Of n ordered values the median lies between numbers r and n + 1 - r unless fewer than r lie on one side."""
    for n in range(6, 61):
        found = median_interval(np.arange(1.0, n + 1), confidence)
        rank = round(found.low)
        assert (found.low, found.high) == (rank, n + 1 - rank)
        covers = 1 - 2 * sum(math.comb(n, k) for k in range(rank)) / 2**n
        one_less = 1 - 2 * sum(math.comb(n, k) for k in range(rank + 1)) / 2**n
        if rank > 1 or confidence <= 0.95:  # the whole range of six values covers 31 of 32
            assert covers >= confidence - 1e-12
        assert one_less < confidence, "a narrower one would do"


def test_the_interval_of_a_median_by_hand() -> None:
    # 1 - 2/64 = 0.969 of six and 1 - 2 * (1 + 10 + 45)/1024 = 0.891, 1 - 2 * 11/1024 = 0.979 of ten.
    six = np.array([3.0, 1.0, 2.0, 9.0, 7.0, 5.0])
    assert median_interval(six) == Interval(1.0, 9.0)
    ten = np.array([10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    assert median_interval(ten) == Interval(2.0, 9.0)
    assert median_interval(ten, 0.89) == Interval(3.0, 8.0)
    assert list(ten) == sorted(ten, reverse=True)  # left as it was


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=80), st.integers(0, 10))
def test_the_interval_of_a_median_holds_it_in_any_order(values: list[float], seed: int) -> None:
    found = median_interval(np.array(values))
    assert found.low <= float(np.median(values)) <= found.high
    assert {found.low, found.high} <= set(values)
    assert median_interval(np.random.default_rng(seed).permutation(values)) == found
    if len(values) < 6:
        assert (found.low, found.high) == (min(values), max(values))


def test_there_is_no_median_of_nothing() -> None:
    with pytest.raises(BadInput, match="no values"):
        median_interval(np.array([]))
    with pytest.raises(BadInput, match="confidence"):
        median_interval(np.array([1.0]), 1.0)
