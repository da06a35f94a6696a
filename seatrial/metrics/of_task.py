"""The one figure that a task on pictures is judged by: what was found is matched once and counted often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from seatrial.core.detection import Detection
from seatrial.core.instance_segmentation import InstanceSegmentation
from seatrial.core.segmentation import SemanticSegmentation
from seatrial.core.task import Task
from seatrial.errors import BadInput
from seatrial.metrics.detection import matches_of
from seatrial.metrics.intervals import Interval
from seatrial.metrics.joining import joined
from seatrial.metrics.resampling import drawn_figures, percentile_interval
from seatrial.metrics.segmentation import mean_iou_of

_CONFIDENCE = 0.95
Figure = Callable[[Int64[np.ndarray, "draws samples"]], Float64[np.ndarray, " draws"]]


@final
@dataclass(frozen=True, eq=False)
class Judged:
    """Records of a task and its figure: a fraction where more is better, of samples counted so many times each.

    `figure` gives NaN where nothing is there to be found. Intervals are 95 % percentile bootstraps over samples with
    `resamples` draws. Source: Efron and Tibshirani 1993, section 13.3.
    Departures: what matches what is kept, since it depends on each sample alone; only precision and recall are counted
    anew. 200 draws, as for average precision, put the ends of an interval within about a tenth of its width.
    """

    metric: str
    records: pa.Table
    figure: Figure
    resamples: int

    def value(self) -> float:
        """Return the figure of all samples; raises BadInput where nothing is there to be found."""
        return self._once(np.arange(len(self.records)))

    def interval(self, rng: np.random.Generator) -> Interval:
        """Return the bootstrap interval of the figure over samples; raises as `value`."""
        self.value()
        return self._spread(self.figure, len(self.records), rng)

    def less(self, other: Judged) -> float:
        """Return this figure minus the other's on the samples that both hold; raises as `value` and `joined`."""
        left, right = joined(self.records, other.records)
        return self._once(left) - other._once(right)

    def less_interval(self, other: Judged, rng: np.random.Generator) -> Interval:
        """Return the interval of `less`, by the same draws for both."""
        left, right = joined(self.records, other.records)

        def difference(weights: np.ndarray) -> np.ndarray:
            return self.figure(self._placed(left, weights)) - other.figure(other._placed(right, weights))

        return self._spread(difference, len(left), rng)

    def _spread(self, figure: Figure, samples: int, rng: np.random.Generator) -> Interval:
        return percentile_interval(drawn_figures(samples, figure, rng=rng, resamples=self.resamples), _CONFIDENCE)

    def _once(self, rows: Int64[np.ndarray, " n"]) -> float:
        value = float(self.figure(self._placed(rows, np.ones((1, len(rows)), dtype=np.int64)))[0])
        if np.isnan(value):
            raise BadInput("samples without an object or a judged pixel", "at least one", "evaluate on more data")
        return value

    def _placed(self, rows: Int64[np.ndarray, " n"], weights: Int64[np.ndarray, "draws n"]) -> np.ndarray:
        placed = np.zeros((len(weights), len(self.records)), dtype=np.int64)
        placed[:, rows] = weights
        return placed


def judge_of(task: Task) -> Callable[[pa.Table], Judged]:
    """Return what judges records of a task: COCO's average precision of boxes or masks, or the mean IoU of classes.

    Raises BadInput for another task; the judge as `matches_of` and `mean_iou_of` do.
    """
    if isinstance(task, Detection):
        return lambda records: Judged("AP", records, matches_of(records, "boxes").average_precision, 200)
    if isinstance(task, InstanceSegmentation):
        return lambda records: Judged("mask AP", records, matches_of(records, "masks").average_precision, 200)
    if isinstance(task, SemanticSegmentation):
        return lambda records: Judged("mean IoU", records, mean_iou_of(records), 2_000)
    raise BadInput(
        f"the task {type(task).__name__}",
        "Detection, InstanceSegmentation or SemanticSegmentation",
        "classifiers go through `seatrial.robustness`",
    )
