"""The figure that a task on texts is judged by, with its interval, and how two models compare on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from seatrial.jobs.measured import Metric
from seatrial.jobs.text_settings import TextTask
from seatrial.metrics.accuracy import share, top1
from seatrial.metrics.intervals import paired_difference, wilson
from seatrial.metrics.joining import column, joined
from seatrial.metrics.language import choice_accuracy, perplexity, perplexity_interval, perplexity_ratio_interval


@dataclass(frozen=True)
class TextFigure:
    """What records of one task are judged by: top-1, perplexity, or accuracy by length, at 95 % where an interval is.

    `answer` and `correct` are the columns of records with answers, None for perplexity.
    """

    name: str
    value: Callable[[pa.Table], float]
    answer: str | None
    correct: str | None

    @staticmethod
    def of(task: TextTask) -> TextFigure:
        """Return the figure of a task."""
        if task == "classification":
            return TextFigure("top1", top1, "answer", "correct")
        if task == "multiple-choice":
            return TextFigure("accuracy", choice_accuracy, "answer_by_length", "correct_by_length")
        return TextFigure("perplexity", perplexity, None, None)

    def row(self, records: pa.Table, rng: np.random.Generator, metric: Metric | None = None) -> dict[str, Any]:
        """Return `value`, `low` and `high`; None where it is no finite number, the ends with a metric of the user's."""
        value = self.value(records) if metric is None else metric(records.to_pandas())
        if metric is not None or not math.isfinite(value):
            return {"value": value if math.isfinite(value) else None, "low": None, "high": None}
        if self.correct is not None:
            found = wilson(int(column(records, self.correct).sum()), len(records))
        else:
            found = perplexity_interval(records, rng=rng)
        return {"value": value, "low": found.low, "high": found.high}

    def agreement(self, first: pa.Table, second: pa.Table) -> float | None:
        """Return the share of equal answers to the samples that both hold; None without answers."""
        if self.answer is None:
            return None
        left, right = joined(first, second)
        return share(column(first, self.answer)[left] == column(second, self.answer)[right])

    def against(self, before: pa.Table, after: pa.Table, rng: np.random.Generator) -> dict[str, Any]:
        """Return the `ratio` of perplexities or the `difference` of accuracies, paired, with its interval."""
        if self.correct is not None:
            left, right = joined(before, after)
            moved = paired_difference(column(before, self.correct)[left], column(after, self.correct)[right], rng=rng)
            return {"ratio": None, "difference": {"value": moved.difference, "low": moved.low, "high": moved.high}}
        value = perplexity(after) / perplexity(before)
        if not math.isfinite(value):
            return {"ratio": None, "difference": None}
        found = perplexity_ratio_interval(before, after, rng=rng)
        return {"ratio": {"value": value, "low": found.low, "high": found.high}, "difference": None}
