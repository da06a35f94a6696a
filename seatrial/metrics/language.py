"""Perplexity and multiple choice over records of language models, and how sure they are."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from seatrial.errors import BadInput
from seatrial.metrics.accuracy import share
from seatrial.metrics.intervals import Interval
from seatrial.metrics.joining import column, joined
from seatrial.metrics.resampling import drawn_figures, percentile_interval


def perplexity(records: pa.Table) -> float:
    """Return the exponential of the mean negative log likelihood of a token over all samples.

    Infinite where it overflows, NaN where a logit was no number. Raises BadInput without a predicted token.
    """
    tokens = int(column(records, "tokens").sum())
    if not tokens:
        raise BadInput("records without a predicted token", "texts of at least two tokens", "evaluate on more data")
    return _exponential(float(column(records, "nll").sum()) / tokens)


def perplexity_interval(
    records: pa.Table, *, rng: np.random.Generator, confidence: float = 0.95, resamples: int = 10_000
) -> Interval:
    """Return the percentile bootstrap interval of the perplexity over samples (texts, not tokens).

    Raises BadInput as `perplexity` does, and for figures that are not finite. Source: Efron and Tibshirani 1993,
    section 13.3.
    """
    drawn = drawn_figures(len(records), partial(_drawn, records), rng=rng, resamples=resamples)
    return percentile_interval(np.exp(drawn), confidence)


def perplexity_ratio_interval(
    before: pa.Table,
    after: pa.Table,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """Return the interval of `perplexity(after) / perplexity(before)` on the samples that both hold, by equal draws.

    Raises BadInput as `perplexity_interval` does and where they share no sample.
    """
    left, right = joined(before, after)
    first, second = before.take(left), after.take(right)

    def logarithm(weights: np.ndarray) -> np.ndarray:
        return _drawn(second, weights) - _drawn(first, weights)

    drawn = drawn_figures(len(left), logarithm, rng=rng, resamples=resamples)
    return percentile_interval(np.exp(drawn), confidence)


def next_token_accuracy(records: pa.Table) -> float:
    """Return the share of tokens that the network held for likeliest, a fraction; raises BadInput without a token."""
    tokens = int(column(records, "tokens").sum())
    if not tokens:
        raise BadInput("records without a predicted token", "texts of at least two tokens", "evaluate on more data")
    return int(column(records, "correct_tokens").sum()) / tokens


def choice_accuracy(records: pa.Table, by: Literal["likelihood", "length"] = "length") -> float:
    """Return the share of questions answered rightly, a fraction; raises BadInput without a question.

    `likelihood` takes the likeliest continuation, `length` the likeliest a byte. Source: `acc` and `acc_norm` of
    EleutherAI's lm-evaluation-harness.
    """
    return share(column(records, "correct" if by == "likelihood" else "correct_by_length"))


def _exponential(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _drawn(records: pa.Table, weights: np.ndarray) -> Float64[np.ndarray, " resamples"]:
    """Return the mean negative log likelihood of each draw."""
    tokens, nll = column(records, "tokens"), column(records, "nll")
    if not np.isfinite(nll).all():
        raise BadInput("texts without a finite likelihood", "finite logits", "leave out the samples without a value")
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weights @ nll) / (weights @ tokens)
