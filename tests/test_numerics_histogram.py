"""A histogram that grows: no value is lost, and batches in any order give that of all values at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seatrial.numerics.histogram import BINS, Histogram

SIZES = st.floats(-30.0, 30.0).map(lambda power: 2.0**power) | st.just(0.0)
BATCHES = st.lists(st.tuples(st.integers(0, 99), SIZES, SIZES), min_size=1, max_size=6)


def batch(seed: int, size: float, middle: float) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(50, generator=chance) * size + middle


def counted(values: Tensor) -> Histogram:
    return Histogram.of(values, float(values.min()), float(values.max()))


@settings(deadline=None, max_examples=200)
@given(drawn=BATCHES)
def test_every_value_lies_in_its_bin_however_much_the_range_has_grown(drawn: list[tuple[int, float, float]]) -> None:
    batches = [batch(*one) for one in drawn]
    found = Histogram.joined([counted(values) for values in batches])
    every = torch.cat(batches).double().numpy()
    assert found.total == every.size
    assert len(found.counts) <= BINS + 1
    assert found.low <= every.min()
    assert every.max() <= found.high
    # NumPy's own histogram on the same edges, a value on the last edge in the last bin.
    assert np.array_equal(found.counts, np.histogram(every, found.edges)[0])


@settings(deadline=None, max_examples=100)
@given(drawn=BATCHES, order=st.randoms(use_true_random=False))
def test_the_order_of_batches_makes_no_difference(drawn: list[tuple[int, float, float]], order: object) -> None:
    parts = [counted(batch(*one)) for one in drawn]
    shuffled = [*parts]
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = Histogram.joined(parts), Histogram.joined(shuffled)
    assert (one.width, one.first) == (other.width, other.first)
    assert np.array_equal(one.counts, other.counts)


def test_a_range_has_thousands_of_bins() -> None:
    for values in (torch.linspace(-1, 1, 1000), torch.linspace(0, 1023, 1000), torch.linspace(5, 5.5, 1000)):
        assert BINS / 2 <= len(counted(values).counts) <= BINS + 1


def test_ends_are_those_of_the_bins_that_hold_quantiles() -> None:
    values = torch.arange(1000).float() / 1000
    low, high = counted(values).ends(0.1, 0.9)
    assert low == pytest.approx(0.1, abs=0.002)
    assert high == pytest.approx(0.9, abs=0.002)
    assert counted(values).ends(0.0, 1.0) == (counted(values).low, counted(values).high)


def test_values_outside_of_the_range_count_as_its_ends() -> None:
    found = Histogram.of(torch.tensor([-5.0, 0.5, 9.0]), 0.0, 1.0)
    assert found.counts[0] == 1
    assert found.counts[-1] == 1
    assert found.total == 3
