"""A histogram that grows with what it is shown: no bounds are needed before, and none are lost by growing."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Self, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BINS = 8192
_FINEST = 2.0**-22
"""Bins are at least so wide, as a share of the largest value: float32 cannot tell more apart."""
_TINY = float(np.finfo(np.float32).tiny)


@final
@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of values in bins of `width`, a power of two, from `first` x width on; at most 8,193 bins.

    A wider range makes bins twice as wide until it fits: two bins become one exactly, so that the histogram of several
    batches is that of all values at once on its bins, whatever their order.
    """

    width: float
    first: int
    counts: Float[np.ndarray, " bins"]

    @classmethod
    def of(cls, values: Tensor, low: float, high: float) -> Self:
        """Count finite values of any shape with bins that suit a range; values outside count as its ends."""
        width = _width(low, high)
        first, bins = _bins(low, high, width)
        # Exact in float32: the width is a power of two, and no value lies more than 2^22 bins from zero.
        index = values.detach().flatten().float().clamp(low, high).mul_(1 / width).floor_().sub_(first)
        counts = torch.bincount(index.clamp_(0, bins - 1).int(), minlength=bins)
        return cls(width, first, counts.double().numpy())

    def __add__(self, other: Histogram) -> Histogram:
        """Return the histogram of the values of both."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        width = max(self.width, other.width)
        while _bins(low, high, width)[1] > BINS + 1:
            width *= 2
        first, bins = _bins(low, high, width)
        counts = np.zeros(bins)
        for one in (self, other):
            index = np.floor(one.edges[:-1] / width).astype(np.int64) - first
            counts += np.bincount(index, one.counts, minlength=bins)
        return Histogram(width, first, counts)

    @staticmethod
    def joined(parts: Sequence[Histogram]) -> Histogram:
        """Return the histogram of the values of all parts, of at least one."""
        return reduce(operator.add, parts)

    @property
    def low(self) -> float:
        """The lower end of the lowest bin."""
        return self.first * self.width

    @property
    def high(self) -> float:
        """The upper end of the highest bin."""
        return (self.first + len(self.counts)) * self.width

    @property
    def edges(self) -> Float[np.ndarray, " bins_and_one"]:
        """The ends of bins, ascending."""
        return np.arange(self.first, self.first + len(self.counts) + 1) * self.width

    @property
    def total(self) -> float:
        """How many values were counted."""
        return float(self.counts.sum())

    def ends(self, below: float, up_to: float) -> tuple[float, float]:
        """Return the range of the bins from that in which a share `below` of values is reached to that of `up_to`."""
        shares, edges = np.cumsum(self.counts) / self.total, self.edges
        first, last = (int(np.searchsorted(shares, share)) for share in (below, up_to))
        return float(edges[min(first, len(shares))]), float(edges[min(last + 1, len(shares))])

    def occupied(self) -> tuple[Float[np.ndarray, " seen"], Float[np.ndarray, " seen"]]:
        """Return the middle of each bin that holds something, and the share of all values in it."""
        seen = np.flatnonzero(self.counts)
        return (self.first + seen + 0.5) * self.width, self.counts[seen] / self.total


def _width(low: float, high: float) -> float:
    """Return the smallest power of two of which a range holds at most 8,192."""
    least = max((high - low) / BINS, _FINEST * max(abs(low), abs(high)), _TINY)
    return 2.0 ** math.ceil(math.log2(least))


def _bins(low: float, high: float, width: float) -> tuple[int, int]:
    """Return the first bin and the number of bins that hold a range; its upper end may be that of the last."""
    first = math.floor(low / width)
    return first, max(1, math.ceil(high / width) - first)
