"""How sure a figure is: intervals for a share, for a difference of shares on the same samples, and by bootstrap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binom

from seatrial.errors import BadInput

_BLOCK = 4_000_000
"""Drawn indices held at once by the bootstrap (32 MB)."""


@dataclass(frozen=True)
class Interval:
    """A two-sided interval, in the unit of the figure it belongs to."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """The difference `after - before` of two accuracies on the same `n` samples, as fractions.

    `low` and `high` are two-sided, `drop_at_most` is the upper end of the one-sided interval of the drop
    (`before - after`); each also by bootstrap. `gained` and `lost` count the samples that turned right and wrong.
    """

    n: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    drop_at_most: float
    bootstrap: Interval
    bootstrap_drop_at_most: float
    gained: int
    lost: int


def _quantile(probability: float) -> float:
    return NormalDist().inv_cdf(probability)


def _checked(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise BadInput(f"confidence {confidence}", "a fraction between 0 and 1", "write 0.95 for 95 %")


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a share of `successes` in `n`, as fractions.

    Raises BadInput for counts that are no share. Source: Wilson 1927; Brown, Cai and DasGupta 2001, equation 4.
    """
    _checked(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise BadInput(f"{successes} of {n}", "a count out of at least one sample", "evaluate on more data")
    z2 = _quantile((1 + confidence) / 2) ** 2
    middle = (successes + z2 / 2) / (n + z2)
    spread = math.sqrt(z2 * (successes * (n - successes) / n + z2 / 4)) / (n + z2)
    # At the ends the formula gives exactly 0 and 1, but for rounding.
    low = 0.0 if successes == 0 else max(0.0, middle - spread)
    high = 1.0 if successes == n else min(1.0, middle + spread)
    return Interval(low, high)


def median_interval(values: Float[np.ndarray, " n"], confidence: float = 0.95) -> Interval:
    """Return the interval of a median between two order statistics, in the unit of the values; no shape is assumed.

    Its coverage is at least `confidence`; of fewer than six values (at 0.95) it is the whole range, which covers less.
    Raises BadInput without values. Source: David and Nagaraja 2003 (Order Statistics), section 7.1.
    """
    _checked(confidence)
    n = len(values)
    if n < 1:
        raise BadInput("no values", "at least one", "measure again")
    ordered = np.sort(values)
    rank = max(int(binom.ppf((1 - confidence) / 2, n, 0.5)), 1)
    return Interval(float(ordered[rank - 1]), float(ordered[n - rank]))


def _adjusted_wald(gained: int, lost: int, n: int, z: float) -> Interval:
    plus, minus = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    spread = z * math.sqrt((plus + minus - (plus - minus) ** 2) / (n + 2))
    return Interval(max(-1.0, plus - minus - spread), min(1.0, plus - minus + spread))


def paired_difference(
    before: Bool[np.ndarray, " n"],
    after: Bool[np.ndarray, " n"],
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> PairedDifference:
    """Return the difference of two accuracies on the same samples (`after - before`) with its intervals.

    Raises BadInput for arrays of different length, or empty ones. Source: the adjusted Wald interval for paired
    shares, Bonett and Price 2012, equation 4: one is added to each of the two discordant counts.
    Departures: the plain Wald interval has no width where no answer differs, so it is not used. The bootstrap draws
    the three counts (gained, lost, same) from their multinomial, which is what resampling the samples gives.
    """
    _checked(confidence)
    if len(before) != len(after) or not len(before):
        raise BadInput(
            f"answers to {len(before)} and {len(after)} samples", "the same samples, at least one", "join them first"
        )
    before, after = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    n = len(before)
    gained, lost = int(np.count_nonzero(after & ~before)), int(np.count_nonzero(before & ~after))
    two_sided = _adjusted_wald(gained, lost, n, _quantile((1 + confidence) / 2))
    one_sided = _adjusted_wald(gained, lost, n, _quantile(confidence))
    counts = rng.multinomial(n, [gained / n, lost / n, (n - gained - lost) / n], size=resamples)
    drawn = (counts[:, 0] - counts[:, 1]) / n
    low, high, floor = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2, 1 - confidence])
    return PairedDifference(
        n=n,
        before=int(before.sum()) / n,
        after=int(after.sum()) / n,
        difference=(gained - lost) / n,
        low=two_sided.low,
        high=two_sided.high,
        drop_at_most=-one_sided.low,
        bootstrap=Interval(float(low), float(high)),
        bootstrap_drop_at_most=-float(floor),
        gained=gained,
        lost=lost,
    )


def bootstrap_mean_difference(
    before: Float[np.ndarray, " n"],
    after: Float[np.ndarray, " n"],
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """Return the percentile bootstrap interval of mean(after - before) over paired samples, in their unit.

    Raises BadInput for arrays of different length, empty ones, or values that are not finite. Source: Efron and
    Tibshirani 1993, section 13.3.
    """
    _checked(confidence)
    if len(before) != len(after) or not len(before):
        raise BadInput(
            f"values of {len(before)} and {len(after)} samples", "the same samples, at least one", "join them first"
        )
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    if not np.isfinite(difference).all():
        raise BadInput("values that are not finite", "finite numbers", "leave out the samples without a value")
    n = len(difference)
    rows = max(1, _BLOCK // n)
    means = [
        difference[rng.integers(0, n, size=(min(rows, resamples - start), n))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))
