"""Overlap of regions over records of semantic segmentation, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from seatrial.errors import BadInput
from seatrial.metrics.joining import column


@final
@dataclass(frozen=True)
class RegionOverlap:
    """Fractions over all judged pixels: mean intersection over union, pixel accuracy, and the overlap of each class.

    `by_class` holds the classes that are there or were answered anywhere; the mean is over them.
    """

    mean_iou: float
    pixel_accuracy: float
    by_class: dict[int, float]


def region_overlap(records: pa.Table) -> RegionOverlap:
    """Return the overlap of the confusions of all samples added up.

    Raises BadInput without a judged pixel and for records of another task. Source: PASCAL VOC's segmentation measure
    (Everingham et al. 2010, section 4.3).
    """
    counts = _counts(records).sum(0)
    pixels, correct = int(column(records, "pixels").sum()), int(column(records, "correct_pixels").sum())
    if not pixels:
        raise BadInput("records without a judged pixel", "at least one", "evaluate on more data")
    iou = _iou(counts[None])[0]
    by_class = {int(name): float(iou[name]) for name in np.flatnonzero(~np.isnan(iou))}
    return RegionOverlap(float(np.nanmean(iou)), correct / pixels, by_class)


def mean_iou_of(records: pa.Table) -> Callable[[Int64[np.ndarray, "draws samples"]], Float64[np.ndarray, " draws"]]:
    """Return what gives the mean overlap of samples counted so many times each, NaN without a pixel of any class.

    Raises BadInput for records of another task.
    """
    return partial(_drawn_means, _counts(records))


def _counts(records: pa.Table) -> Int64[np.ndarray, "samples 3 classes"]:
    """Return the pixels of each class in each sample: rightly answered, there, and answered."""
    sizes = np.unique(column(records, "n_classes"))
    if len(sizes) != 1:
        raise BadInput(f"records with {sizes.tolist()} classes", "samples of one network", "compare one at a time")
    n_classes = int(sizes[0])
    found = np.zeros((len(records), 3, n_classes + 1), dtype=np.int64)
    for row, (cells, counts) in enumerate(zip(column(records, "cells"), column(records, "counts"))):
        true, answered = np.divmod(np.asarray(cells, dtype=np.int64), n_classes + 1)
        right = true == answered
        for kind, (classes, chosen) in enumerate(((true, right), (true, slice(None)), (answered, slice(None)))):
            np.add.at(found[row, kind], classes[chosen], np.asarray(counts)[chosen])
    return found[:, :, :n_classes]


def _iou(counts: np.ndarray) -> Float64[np.ndarray, "draws classes"]:
    right, there, answered = counts[:, 0], counts[:, 1], counts[:, 2]
    union = there + answered - right
    return np.divide(right, union, out=np.full(union.shape, np.nan), where=union > 0)


def _drawn_means(counts: np.ndarray, weights: np.ndarray) -> Float64[np.ndarray, " resamples"]:
    drawn = (weights @ counts.reshape(len(counts), -1)).reshape(len(weights), *counts.shape[1:])
    iou = _iou(drawn)
    there = ~np.isnan(iou)
    with np.errstate(invalid="ignore"):
        return np.where(there, iou, 0).sum(1) / there.sum(1)
