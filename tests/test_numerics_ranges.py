"""Grids and ranges: the law of rounding, numpy and torch as oracles, and brute force for the least squared error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seatrial.core.insert_round import fake
from seatrial.core.precision import INTEGER_BITS, Precision
from seatrial.core.recipe import Affine
from seatrial.errors import BadInput
from seatrial.numerics.ranges import (
    MeanSquaredError,
    MinMax,
    MovingAverage,
    Observed,
    Percentile,
    Range,
    grid_for,
    weight_grid,
)

FINITE = st.floats(-1e4, 1e4, width=32)
PRECISIONS = st.builds(
    Precision,
    st.sampled_from(INTEGER_BITS),
    signed=st.sampled_from([None, True]),
    symmetric=st.booleans(),
    narrow=st.booleans(),
) | st.builds(Precision, st.sampled_from(INTEGER_BITS), signed=st.just(False))


def observed(*batches: Tensor, window: tuple[float, float] = (-math.inf, math.inf)) -> Observed:
    seen = Observed(window, counted=True)
    for batch in batches:
        seen.see(batch)
    return seen


def values(seed: int, count: int = 4000) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


@settings(deadline=None, max_examples=200)
@given(one=FINITE, other=FINITE, precision=PRECISIONS)
def test_what_the_range_holds_is_off_by_half_a_step_at_most(one: float, other: float, precision: Precision) -> None:
    low, high = sorted((one, other))
    grid = grid_for(low, high, precision)
    lowest, highest = grid.codes
    scale, zero = float(grid.scale), int(grid.zero_point)
    assert lowest <= zero <= highest
    assert fake(torch.zeros(1), grid).item() == 0
    x = torch.linspace(min(low, 0.0), max(high, 0.0), 301, dtype=torch.float64)
    # The zero point is a whole number, so that one end may lie half a step outside.
    inside = (x >= (lowest - zero) * scale) & (x <= (highest - zero) * scale)
    error = (fake(x, grid) - x).abs()
    assert bool((error[inside] <= scale * (0.5 + 1e-4)).all())
    assert bool((error <= scale * (1 + 1e-4)).all())
    assert torch.equal(fake(fake(x, grid), grid), fake(x, grid))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_an_affine_grid_rounds_as_torch_does(bits: int, signed: bool) -> None:
    x = values(0) * 3
    grid = grid_for(-2.0, 5.0, Precision(bits, signed=signed))
    low, high = grid.codes
    oracle = torch.fake_quantize_per_tensor_affine(x, float(grid.scale), int(grid.zero_point), low, high)
    # torch multiplies by the reciprocal of the scale: a value between two codes may fall on the other side.
    off = (fake(x, grid) - oracle).abs() > 1e-5
    assert float(off.float().mean()) < 0.002


@pytest.mark.parametrize("bits", INTEGER_BITS)
def test_an_affine_grid_is_the_formula_of_jacob(bits: int) -> None:
    low, high = -1.3, 4.2
    grid = grid_for(low, high, Precision(bits, signed=False))
    scale = np.float32(np.float32(high) - np.float32(low)) / np.float32(2**bits - 1)
    assert float(grid.scale) == float(scale)
    assert int(grid.zero_point) == round(-low / float(scale))
    assert grid.codes == (0, 2**bits - 1)


@pytest.mark.parametrize(
    ("low", "high", "signed", "zero"),
    [(0.0, 3.0, False, 0), (0.5, 3.0, False, 0), (-3.0, 3.0, True, 0), (-2.0, 3.0, True, 0), (-1.0, 3.0, False, 64)],
)
def test_a_grid_without_a_sign_follows_the_range(low: float, high: float, signed: bool, zero: int) -> None:
    grid = grid_for(low, high, Precision(8))
    assert (grid.signed, int(grid.zero_point)) == (signed, zero)


@settings(deadline=None, max_examples=100)
@given(one=FINITE, other=FINITE, bits=st.sampled_from(INTEGER_BITS), symmetric=st.booleans())
def test_a_grid_without_a_sign_is_never_signed_with_a_zero_point(
    one: float, other: float, bits: int, symmetric: bool
) -> None:
    grid = grid_for(*sorted((one, other)), Precision(bits, symmetric=symmetric))
    assert not (grid.signed and int(grid.zero_point))
    assert not (symmetric and int(grid.zero_point))


def test_an_unsigned_grid_around_zero_refuses_negative_values() -> None:
    with pytest.raises(BadInput, match="values >= 0"):
        grid_for(-1.0, 1.0, Precision(8, signed=False, symmetric=True))


@pytest.mark.parametrize("bits", INTEGER_BITS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_weight_grid_is_that_of_each_channel(bits: int, symmetric: bool, axis: int | None) -> None:
    weight = values(1, 4 * 3 * 5).reshape(4, 3, 5) * torch.tensor([0.01, 1.0, 0.0, 7.0]).reshape(4, 1, 1)
    precision = Precision(bits, signed=True, symmetric=symmetric, axis=axis, narrow=True)
    grid = weight_grid(weight, precision)
    rows = [weight] if axis is None else list(weight.unbind(axis))
    scales, zeros = grid.scale.reshape(-1), grid.zero_point.reshape(-1)
    assert len(scales) == len(rows)
    for row, scale, zero in zip(rows, scales, zeros, strict=True):
        alone = grid_for(float(row.min()), float(row.max()), precision)
        assert float(scale) == pytest.approx(float(alone.scale), rel=1e-6)
        assert abs(int(zero) - int(alone.zero_point)) <= 1
    near = fake(weight, grid)
    step = scales.reshape([-1 if i == axis else 1 for i in range(3)]) if axis is not None else scales
    assert bool(((near - weight).abs() <= step * (0.5 if symmetric else 1.0) * (1 + 1e-4)).all())


def test_min_max_and_the_moving_average_follow_their_formulas() -> None:
    batches = [values(seed) * (seed + 1) for seed in range(4)]
    seen = observed(*batches)
    assert MinMax().choose(seen, Precision(8)) == (
        min(float(batch.min()) for batch in batches),
        max(float(batch.max()) for batch in batches),
    )
    low, high = float(batches[0].min()), float(batches[0].max())
    for batch in batches[1:]:
        low, high = 0.9 * low + 0.1 * float(batch.min()), 0.9 * high + 0.1 * float(batch.max())
    assert MovingAverage().choose(seen, Precision(8)) == pytest.approx((low, high))


@pytest.mark.parametrize("share", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("positive", [True, False])
def test_a_percentile_is_that_of_numpy_to_a_bin(share: float, positive: bool) -> None:
    x = values(2, 50_000)
    x = x.abs() if positive else x
    low, high = Percentile(share).choose(observed(x), Precision(8))
    bin_width = float(x.max() - x.min()) / 8192
    tail = (1 - share) * (1 if positive else 0.5)
    assert high == pytest.approx(np.quantile(x.numpy(), 1 - tail), abs=3 * bin_width + 0.01)
    assert low == pytest.approx(0.0 if positive else np.quantile(x.numpy(), tail), abs=3 * bin_width + 0.01)


def squared_error(x: Tensor, grid: Affine) -> float:
    return float((fake(x.double(), grid) - x.double()).square().mean())


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("shape", ["normal", "relu", "outlier", "lopsided"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_least_squared_error_is_near_that_of_brute_force(bits: int, shape: str, symmetric: bool) -> None:
    x = values(3)
    x = {"normal": x, "relu": x.relu(), "outlier": torch.cat([x, torch.tensor([60.0])]), "lopsided": x.exp() - 1}[shape]
    precision = Precision(bits, signed=True if symmetric else None, symmetric=symmetric)
    found = squared_error(x, grid_for(*MeanSquaredError().choose(observed(x), precision), precision))
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    factors = np.linspace(0.02, 1, 50)
    lows = factors * low if low else [0.0]
    best = min(squared_error(x, grid_for(a, b, precision)) for a in lows for b in factors * high)
    assert found <= best * 1.1
    assert found <= squared_error(x, grid_for(low, high, precision)) * 1.001


@settings(deadline=None, max_examples=40)
@given(
    ends=st.tuples(FINITE, FINITE),
    ranges=st.sampled_from([MinMax(), MovingAverage(), Percentile(), MeanSquaredError(steps=8)]),
    precision=PRECISIONS,
)
def test_the_ends_of_a_range_are_ordered(ends: tuple[float, float], ranges: Range, precision: Precision) -> None:
    low, high = sorted(ends)
    if precision.signed is False and precision.symmetric:
        low, high = abs(low), abs(low) + abs(high)
    seen = observed(torch.linspace(low, high, 50), torch.tensor([low, high]))
    first, last = ranges.choose(seen, precision)
    assert first <= last


def test_pictures_normalized_to_one_do_not_stand_between_two_codes() -> None:
    x = torch.arange(256).repeat(4) / 127.5 - 1
    precision = Precision(8, signed=False)
    found = fake(x, grid_for(*MeanSquaredError().choose(observed(x), precision), precision))
    whole = fake(x, grid_for(-1.0, 1.0, precision))
    assert float((found - x).square().mean()) < 0.5 * float((whole - x).square().mean())
    assert len(found.unique()) >= 254


def test_the_window_of_the_readers_bounds_what_was_seen() -> None:
    x = values(4) * 20
    seen, clamped = observed(x, window=(0.0, 6.0)), observed(x.clamp(0, 6))
    assert seen.low_high == (0.0, 6.0)
    assert seen.histogram is not None
    assert clamped.histogram is not None
    assert np.array_equal(seen.histogram.counts, clamped.histogram.counts)
    assert observed(-x.abs() - 1, window=(0.0, 6.0)).low_high == (0.0, 0.0)


def test_a_thinned_histogram_keeps_the_shape_of_the_whole() -> None:
    # Columns of very different size: counting every 4th value alone would see one of them.
    x = torch.rand(2**19, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 4.0, 8.0])
    seen = observed(x)
    assert seen.histogram is not None
    below = seen.histogram.edges[1:] <= 1
    share = seen.histogram.counts[below].sum() / seen.histogram.total
    assert share == pytest.approx(float((x < 1).float().mean()), abs=0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(BadInput, match="not finite"):
        Observed().see(torch.tensor([1.0, bad]))


@pytest.mark.parametrize("ranges", [MinMax(), MeanSquaredError(), Percentile()], ids=lambda r: type(r).__name__)
def test_a_range_without_data_is_refused(ranges: Range) -> None:
    with pytest.raises(BadInput, match="no calibration batch"):
        ranges.choose(Observed(), Precision(8))
