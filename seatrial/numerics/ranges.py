"""From observed values to the range of a grid: min-max, percentile, mean squared error, moving average."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from torch import Tensor

from seatrial.core.grids import Affine, codes_of
from seatrial.core.precision import Precision
from seatrial.errors import BadInput, not_finite
from seatrial.numerics.histogram import Histogram

_COUNTED = 2**19
"""Values of one batch that enter a histogram; more are thinned out evenly."""
_TINY = float(np.finfo(np.float32).tiny)
_TOKENS = 2**12
"""Tokens of one batch whose extremes are kept; more are thinned out evenly."""
_LOPSIDED = 0.75
"""A signed grid around zero of which a range would use a smaller share than this gives way to an unsigned one."""


@dataclass
class Observed:
    """What was seen of one tensor: bounds over all batches, of each batch and each token, and a histogram."""

    window: tuple[float, float] = (-math.inf, math.inf)
    """What readers make a difference of (0 to 6 before a ReLU6): values outside count as its ends."""
    name: str = "a tensor"
    batches: list[tuple[float, float]] = field(default_factory=list)
    counted: bool = False
    """A histogram is kept."""
    histogram: Histogram | None = None
    by_token: bool = False
    """Rows of the last axis are tokens, whose bounds are kept."""
    tokens: list[np.ndarray] = field(default_factory=list)
    """[2, tokens] for each batch: lowest and highest value of each, of some tokens where a batch has many."""

    def see(self, value: Tensor) -> None:
        """Take in a batch; raises BadInput, naming the tensor, where it is not finite."""
        low, high = (float(end) for end in torch.aminmax(value.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise not_finite(self.name)
        first, last = self.window
        low, high = min(max(low, first), last), min(max(high, first), last)
        self.batches.append((low, high))
        if self.counted:
            new = Histogram.of(_thinned(value.detach(), _COUNTED), low, high)
            self.histogram = new if self.histogram is None else self.histogram + new
        if self.by_token:
            ends = [_thinned(end, _TOKENS) for end in torch.aminmax(value.detach().float(), dim=-1)]
            self.tokens.append(torch.stack(ends).clamp(first, last).numpy())

    @classmethod
    def union(cls, parts: Sequence[Observed]) -> Self:
        """Return what was seen of several tensors that share a grid, from the same batches."""
        histograms = [one.histogram for one in parts if one.histogram is not None]
        return cls(
            (min(one.window[0] for one in parts), max(one.window[1] for one in parts)),
            parts[0].name,
            [
                (min(low for low, _ in same), max(high for _, high in same))
                for same in zip(*(one.batches for one in parts), strict=True)
            ],
            histogram=Histogram.joined(histograms) if histograms else None,
            tokens=[each for one in parts for each in one.tokens] if all(one.tokens for one in parts) else [],
        )

    @property
    def low_high(self) -> tuple[float, float]:
        """Lowest and highest value over all batches; raises BadInput where nothing was seen."""
        if not self.batches:
            raise BadInput("no calibration batch", "at least one", "pass calibration data")
        return min(low for low, _ in self.batches), max(high for _, high in self.batches)


def _thinned(value: Tensor, most: int) -> Tensor:
    """Return every n-th value, n sharing no factor with the size, so that rows, columns and channels come evenly."""
    flat = value.reshape(-1)
    step = max(1, -(-flat.numel() // most))
    while math.gcd(step, flat.numel()) > 1 and step < flat.numel():
        step += 1
    return flat[::step]


class Range(ABC):
    """Chooses the range of a static grid from what was observed; `grid_for` widens it to hold zero.

    Law: the lower end is not above the upper one.
    """

    needs_counts: bool = False
    needs_tokens: bool = False

    def tried(self, bits: int) -> Sequence[Range]:
        """Return the ranges of which a quantizer takes the one that suits the whole network best, the first of equals.

        `bits` are the fewest of any activation.
        """
        return (self,)

    @abstractmethod
    def choose(self, observed: Observed, precision: Precision) -> tuple[float, float]:
        """Return the lowest and highest value that the grid should hold."""


@dataclass(frozen=True)
class MinMax(Range):
    """The lowest and highest value seen in all batches."""

    def choose(self, observed: Observed, precision: Precision) -> tuple[float, float]:
        return observed.low_high


@dataclass(frozen=True)
class MovingAverage(Range):
    """The average of each batch's bounds, later batches weighing more.

    Source: Jacob et al. 2018, section 3.1 (exponential moving average).
    """

    momentum: float = 0.9

    def choose(self, observed: Observed, precision: Precision) -> tuple[float, float]:
        low, high = observed.batches[0]
        for next_low, next_high in observed.batches[1:]:
            low = self.momentum * low + (1 - self.momentum) * next_low
            high = self.momentum * high + (1 - self.momentum) * next_high
        return low, high


@dataclass(frozen=True)
class Percentile(Range):
    """The bounds between which `share` of all values lie, from a histogram."""

    share: float = 0.9999
    needs_counts: bool = True

    def choose(self, observed: Observed, precision: Precision) -> tuple[float, float]:
        low, high = observed.low_high
        if observed.histogram is None or high <= low:
            return low, high
        tail = (1 - self.share) / (1 if low >= 0 else 2)
        first, last = observed.histogram.ends(tail if low < 0 else 0.0, 1 - tail)
        return max(first, low), min(last, high)


_WIDER = (1.004, 1.008, 1.016)


@dataclass(frozen=True)
class MeanSquaredError(Range):
    """The range whose grid has the least squared error on the histogram; its ends move towards zero independently.

    Both ends together, then each in turn, then each again try `steps` factors from 1 to 1/32 in equal ratios, and a few
    above 1: pictures normalized to -1 to 1 all lie halfway between two codes of the grid that just holds them.

    Source: the OMSE search of Choukroun et al. 2019, on a histogram. Departures: two ends instead of one threshold;
    where bins are wider than a step of the grid, the error inside is that of a uniform density, step^2 / 12.
    """

    steps: int = 60
    needs_counts: bool = True

    def choose(self, observed: Observed, precision: Precision) -> tuple[float, float]:
        low, high = observed.low_high
        if observed.histogram is None or high <= low:
            return low, high
        (centers, weights), width = observed.histogram.occupied(), observed.histogram.width
        whole = ends = min(low, 0.0), max(high, 0.0)
        # ONNX Runtime joins a clipping activation and a round only if the grid ends where the activation does.
        least, most = min(observed.window[0], 0.0), max(observed.window[1], 0.0)
        best = grid_error(ends, centers, weights, width, precision)
        for moved in ((True, True), (False, True), (True, False), (False, True), (True, False)):
            for factor in (*np.geomspace(1.0, 1 / 32, self.steps), *_WIDER):
                first, last = max(float(factor * whole[0]), least), min(float(factor * whole[1]), most)
                tried = first if moved[0] else ends[0], last if moved[1] else ends[1]
                error = grid_error(tried, centers, weights, width, precision)
                if error < best:
                    best, ends = error, tried
        return ends


def grid_error(
    ends: tuple[float, float], centers: np.ndarray, weights: np.ndarray, width: float, precision: Precision
) -> float:
    """Return the mean squared error of the grid for a range on a histogram with bins of `width`.

    NumPy and plain numbers, because a search asks thousands of times: tensors would take most of its time.
    """
    signed, step, zero = _numbers_of(ends[0], ends[1], precision)
    scale, (low, high) = float(step), codes_of(precision.bits, signed, narrow=precision.narrow)
    if scale < 2 * width:
        off = centers - np.clip(centers, scale * (low - zero), scale * (high - zero))
        inside = (off == 0) * scale**2 / 12
        return float((weights * (np.square(off) + inside)).sum())
    codes = np.clip(np.rint(centers / scale) + zero, low, high)
    return float((weights * np.square((codes - zero) * scale - centers)).sum())


def grid_for(low: float, high: float, precision: Precision) -> Affine:
    """Return the per-tensor grid for a range, widened to hold zero.

    A precision without a sign becomes unsigned from zero up where `low` >= 0, and signed around zero where the range
    uses at least three quarters of such a grid. A lopsided range becomes unsigned with a zero point, unless the
    precision is symmetric; never signed with a zero point, which OpenVINO runs in float.
    Source: Jacob et al. 2018, eq. 12, with the zero point rounded.
    """
    signed, scale, zero = _numbers_of(low, high, precision)
    return Affine(
        precision.bits, signed, torch.tensor(scale), torch.tensor(zero, dtype=torch.int64), None, precision.narrow
    )


def _numbers_of(low: float, high: float, precision: Precision) -> tuple[bool, np.float32, int]:
    """Return sign, scale and zero point of the grid for a range."""
    low, high = min(low, 0.0), max(high, 0.0)
    signed = low < 0 if precision.signed is None else precision.signed
    lopsided = low < 0 and high - low < _LOPSIDED * 2 * max(-low, high)
    if precision.signed is None and lopsided and not precision.symmetric:
        signed = False
    elif precision.signed is None or precision.symmetric:
        if not signed and low < 0:
            raise BadInput(f"a range from {low:g} for an unsigned grid around zero", "values >= 0", "ask for a sign")
        top = max(-low, high)
        code = 2 ** (precision.bits - 1) - 1 if signed else 2**precision.bits - 1
        return signed, _safe(np.float32(top) / np.float32(code)), 0
    bottom = -(2 ** (precision.bits - 1)) + int(precision.narrow) if signed else 0
    steps = 2**precision.bits - 1 - int(precision.narrow and signed)
    scale = (np.float32(high) - np.float32(low)) / np.float32(steps)
    zero = 0 if scale == 0 else int(np.clip(np.rint(bottom - low / float(scale)), bottom, bottom + steps))
    return signed, _safe(scale), zero


def _safe(scale: np.floating) -> np.float32:
    # A tensor that is zero everywhere keeps a harmless scale; so does one whose scale would not be a normal number.
    return np.float32(1.0) if float(scale) < _TINY else np.float32(scale)


def weight_grid(weight: Tensor, precision: Precision) -> Affine:
    """Return the min-max grid of a weight, signed; symmetric or affine; per channel along `precision.axis` or not."""
    if precision.axis is None:
        low, high = torch.aminmax(weight)
        return grid_for(float(low), float(high), precision)
    rows = weight.detach().transpose(0, precision.axis).flatten(1)
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    bottom, top = Affine(precision.bits, True, low, low, None, precision.narrow).codes
    if precision.symmetric:
        scale, zero = torch.maximum(-low, high) / top, torch.zeros_like(low, dtype=torch.int64)
    else:
        scale = (high - low) / (top - bottom)
        zero = (bottom - low / scale.clamp(min=1e-38)).round().clamp(bottom, top).long()
        zero = torch.where(high > low, zero, torch.zeros_like(zero))
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
    return Affine(precision.bits, True, scale, zero, precision.axis, precision.narrow)
