"""The one figure that a task is judged by, with its intervals, for tasks on pictures that have no single label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np
import pyarrow as pa

from seatrial.core.detection import Detection
from seatrial.core.instance_segmentation import InstanceSegmentation
from seatrial.core.segmentation import SemanticSegmentation
from seatrial.core.task import Task
from seatrial.errors import BadInput
from seatrial.metrics.detection import (
    Shape,
    ap_difference_interval,
    ap_interval,
    average_precision,
    matches_of,
)
from seatrial.metrics.intervals import Interval
from seatrial.metrics.segmentation import mean_iou_difference_interval, mean_iou_interval, region_overlap


@final
@dataclass(frozen=True)
class TaskMetric:
    """A figure over records, as a fraction where more is better; None where nothing is there to be found.

    `interval` is that of the figure, `difference` that of the figure of the second records less that of the first on
    the samples that both hold; both take a generator.
    """

    name: str
    figure: Callable[[pa.Table], float | None]
    interval: Callable[[pa.Table, np.random.Generator], Interval]
    difference: Callable[[pa.Table, pa.Table, np.random.Generator], Interval]


def metric_of(task: Task) -> TaskMetric:
    """Return COCO's average precision of boxes or masks, or the mean overlap of regions.

    Raises BadInput for another task.
    """
    if isinstance(task, Detection):
        return _precision("AP", "boxes")
    if isinstance(task, InstanceSegmentation):
        return _precision("mask AP", "masks")
    if isinstance(task, SemanticSegmentation):
        return TaskMetric(
            "mean IoU",
            lambda records: region_overlap(records).mean_iou,
            lambda records, rng: mean_iou_interval(records, rng=rng),
            lambda before, after, rng: mean_iou_difference_interval(before, after, rng=rng),
        )
    raise BadInput(
        f"the task {type(task).__name__}",
        "Detection, InstanceSegmentation or SemanticSegmentation",
        "classifiers go through `seatrial.robustness`",
    )


def _precision(name: str, shape: Shape) -> TaskMetric:
    return TaskMetric(
        name,
        lambda records: average_precision(records, shape).ap,
        lambda records, rng: ap_interval(matches_of(records, shape), rng=rng),
        partial(_precision_difference, shape),
    )


def _precision_difference(shape: Shape, before: pa.Table, after: pa.Table, rng: np.random.Generator) -> Interval:
    return ap_difference_interval(before, after, rng=rng, shape=shape)
