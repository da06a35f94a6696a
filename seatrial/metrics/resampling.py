"""Bootstrap of figures that are no mean: samples counted anew, the figure taken of each draw."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, Int64

from seatrial.errors import BadInput
from seatrial.metrics.intervals import Interval

_BLOCK = 4_000_000
"""Counts held at once (32 MB)."""


def drawn_figures(
    count: int,
    figure: Callable[[Int64[np.ndarray, "draws samples"]], Float64[np.ndarray, "draws ..."]],
    *,
    rng: np.random.Generator,
    resamples: int,
) -> Float64[np.ndarray, "resamples ..."]:
    """Return `figure` of how often each of `count` samples is drawn, for each of `resamples` draws.

    A draw may have several figures, in further axes. Raises BadInput without a sample. Source: Efron and Tibshirani
    1993, section 6.2.
    """
    if not count:
        raise BadInput("records without a sample", "at least one sample", "evaluate on more data")
    rows = max(1, _BLOCK // count)
    shares = np.full(count, 1 / count)
    parts = [
        figure(rng.multinomial(count, shares, size=min(rows, resamples - start))) for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts)


def percentile_interval(drawn: Float64[np.ndarray, " resamples"], confidence: float) -> Interval:
    """Return the percentile interval of drawn figures, in their unit; draws without a figure (NaN) are left out.

    Raises BadInput for a confidence that is no fraction, and where no draw has a finite figure or some is infinite.
    Source: Efron and Tibshirani 1993, section 13.3.
    """
    if not 0 < confidence < 1:
        raise BadInput(f"confidence {confidence}", "a fraction between 0 and 1", "write 0.95 for 95 %")
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn) or not np.isfinite(drawn).all():
        raise BadInput("samples without a finite figure", "finite figures", "leave out the samples without a value")
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))
