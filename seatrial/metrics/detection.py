"""Average precision of boxes and masks over records of detection, and how sure it is."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, final

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Float64, Int64

from seatrial.errors import BadInput, missing_extra
from seatrial.metrics.joining import column

Shape = Literal["boxes", "masks"]
THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Overlaps from which a find counts as right (COCO)."""
_FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "recall_1", "recall_10", "recall_100")
"""The order in which `COCOeval.summarize` gives them."""
_RECALLS = np.linspace(0, 1, 101)
_BLOCK = 4_000_000
"""Numbers held at once by the bootstrap (32 MB)."""


@final
@dataclass(frozen=True)
class AveragePrecision:
    """COCO's figures as fractions, None where no object of that kind is there.

    `ap` is the mean over classes and over overlaps from 0.50 to 0.95, `ap50` and `ap75` those at one overlap; small
    objects have less than 32 by 32 pixels, large ones more than 96 by 96. `recall_1` to `recall_100` are average
    recalls with so many finds a picture. `by_class` holds `ap` of each class that is there.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    recall_1: float | None
    recall_10: float | None
    recall_100: float | None
    by_class: dict[int, float]


@final
@dataclass(frozen=True, eq=False)
class ClassMatches:
    """What was found of one class, best first: which sample, right or not, and left out at each overlap.

    `there` [samples] counts the objects of the class in each sample, crowds left out.
    """

    sample: Int64[np.ndarray, " found"]
    right: Bool[np.ndarray, "10 found"]
    left_out: Bool[np.ndarray, "10 found"]
    there: Int64[np.ndarray, " samples"]


@final
@dataclass(frozen=True, eq=False)
class Matches:
    """What COCO's rules match with what, computed once; resampling and comparing only count it."""

    samples: tuple[str, ...]
    classes: dict[int, ClassMatches]

    def average_precision(
        self, weights: Float[np.ndarray, "resamples samples"] | Int64[np.ndarray, "resamples samples"]
    ) -> Float64[np.ndarray, " resamples"]:
        """Return `ap` of samples counted so many times each, NaN where none holds an object.

        Equal to COCO's figure on a data set that holds each sample so often, but for finds of equal score in
        different samples.
        """
        found = [_average_precision(matches, np.asarray(weights)) for matches in self.classes.values()]
        if not found:
            return np.full(len(weights), np.nan)
        each = np.stack(found)
        there = ~np.isnan(each)
        with np.errstate(invalid="ignore"):
            return np.where(there, each, 0).sum(0) / there.sum(0)


def average_precision(records: pa.Table, shape: Shape = "boxes") -> AveragePrecision:
    """Return COCO's average precision and recall of boxes or masks, at most 100 finds a picture.

    Raises BadInput without a record, for records of another task, and where pycocotools is not installed.
    Source: pycocotools, `COCOeval` (Lin et al. 2014).
    """
    evaluation = _evaluated(records, shape)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    figures = {name: None if value < 0 else float(value) for name, value in zip(_FIGURES, evaluation.stats)}
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    by_class = {
        int(name): float(precision[:, :, row].mean())
        for row, name in enumerate(evaluation.params.catIds)
        if (precision[:, :, row] >= 0).all()
    }
    return AveragePrecision(**figures, by_class=by_class)


def matches_of(records: pa.Table, shape: Shape = "boxes") -> Matches:
    """Return what was matched with what, objects of all sizes; raises as `average_precision` does."""
    evaluation = _evaluated(records, shape, all_sizes_alone=True)
    samples = tuple(column(records, "sample").astype(str))
    images = evaluation.params.imgIds
    classes = {}
    for row, name in enumerate(evaluation.params.catIds):
        start = row * len(images)
        cells = [(number, cell) for number, cell in zip(images, evaluation.evalImgs[start:][: len(images)]) if cell]
        there = np.zeros(len(samples), dtype=np.int64)
        for number, cell in cells:
            there[number - 1] = np.count_nonzero(np.asarray(cell["gtIgnore"]) == 0)
        scores = np.concatenate([np.asarray(cell["dtScores"], dtype=np.float64) for _, cell in cells] or [np.empty(0)])
        order = np.argsort(-scores, kind="mergesort")
        owner = np.concatenate([np.full(len(cell["dtScores"]), number - 1) for number, cell in cells] or [np.empty(0)])
        matched = _joined([cell["dtMatches"] for _, cell in cells])[:, order] > 0
        left_out = _joined([cell["dtIgnore"] for _, cell in cells])[:, order] > 0
        classes[int(name)] = ClassMatches(owner.astype(np.int64)[order], matched & ~left_out, left_out, there)
    return Matches(samples, classes)


def _average_precision(matches: ClassMatches, weights: np.ndarray) -> Float64[np.ndarray, " resamples"]:
    there = weights @ matches.there
    result = np.full(len(weights), np.nan)
    found = len(matches.sample)
    rows = max(1, _BLOCK // max(1, 4 * found * len(THRESHOLDS)))
    for start in range(0, len(weights), rows):
        part = slice(start, start + rows)
        if found == 0:
            result[part] = np.where(there[part] > 0, 0.0, np.nan)
            continue
        counted = weights[part][:, None, matches.sample] * ~matches.left_out[None]
        right = np.cumsum(counted * matches.right[None], axis=-1, dtype=np.float64)
        all_found = np.cumsum(counted, axis=-1, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = right / there[part, None, None]
            precision = right / (all_found + np.spacing(1))
        best = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
        for row in range(len(recall)):
            if there[start + row] > 0:
                result[start + row] = _area(recall[row], best[row])
    return result


def _area(recall: Float64[np.ndarray, "10 found"], best: Float64[np.ndarray, "10 found"]) -> float:
    """Return the mean over overlaps of precision at 101 recalls, 0 where a recall is not reached."""
    total = 0.0
    for reached, precision in zip(recall, best):
        at = np.searchsorted(reached, _RECALLS, side="left")
        total += precision[at[at < len(precision)]].sum()
    return total / (len(_RECALLS) * len(recall))


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    found = list(parts)
    return np.concatenate(found, axis=1) if found else np.zeros((len(THRESHOLDS), 0))


def _evaluated(records: pa.Table, shape: Shape, *, all_sizes_alone: bool = False) -> Any:
    """Return pycocotools' evaluation with its matches; images are numbered from 1 in the order of the records."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise missing_extra("pycocotools", "detection", "average precision") from error
    if not len(records):
        raise BadInput("records without a sample", "at least one sample", "evaluate on more data")
    height, width = column(records, "height"), column(records, "width")
    images = [{"id": i + 1, "height": int(h), "width": int(w)} for i, (h, w) in enumerate(zip(height, width))]
    true = _annotations(records, shape, "true_")
    crowd, areas = _flat(records, "true_crowd"), _flat(records, "true_areas")
    for number, entry in enumerate(true):
        entry |= {"id": number + 1, "iscrowd": int(crowd[number]), "area": float(areas[number])}
    found = _annotations(records, shape, "")
    scores = _flat(records, "scores")
    for number, entry in enumerate(found):
        entry |= {"id": number + 1, "iscrowd": 0, "area": _area_px(entry), "score": float(scores[number])}
    classes = sorted({entry["category_id"] for entry in (*true, *found)})
    truth, finds = cast("list[Any]", [COCO(), COCO()])
    with contextlib.redirect_stdout(io.StringIO()):
        for target, entries in ((truth, true), (finds, found)):
            target.dataset = {"images": images, "annotations": entries, "categories": [{"id": c} for c in classes]}
            target.createIndex()
        evaluation = COCOeval(truth, finds, "bbox" if shape == "boxes" else "segm")
        if all_sizes_alone:  # the other three take three times as long again
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.evaluate()
    return evaluation


def _annotations(records: pa.Table, shape: Shape, prefix: str) -> list[dict[str, Any]]:
    boxes, classes = (
        _flat(records, prefix + "boxes").reshape(-1, 4).astype(np.float64),
        _flat(records, prefix + "classes"),
    )
    owners = np.repeat(np.arange(1, len(records) + 1), _lengths(records, prefix + "classes"))
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
    entries: list[dict[str, Any]] = [
        {"image_id": owner, "category_id": kind, "bbox": box}
        for owner, kind, box in zip(owners.tolist(), classes.tolist(), sides)
    ]
    if shape == "masks":
        mask: Any = importlib.import_module("pycocotools.mask")
        sizes = list(zip(column(records, "height").tolist(), column(records, "width").tolist()))
        masks = _nested(records, prefix + "runs")
        for entry, runs in zip(entries, masks, strict=True):
            height, width = sizes[entry["image_id"] - 1]
            entry["segmentation"] = mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return entries


def _area_px(entry: dict[str, Any]) -> float:
    if "segmentation" in entry:
        mask: Any = importlib.import_module("pycocotools.mask")
        return float(mask.area(entry["segmentation"]))
    return entry["bbox"][2] * entry["bbox"][3]


def _listed(records: pa.Table, name: str) -> Any:
    if name not in records.column_names:
        raise BadInput(
            f"records without a column '{name}'", f"one of {records.column_names}", "evaluate this task again"
        )
    return records.column(name)


def _flat(records: pa.Table, name: str) -> np.ndarray:
    return _listed(records, name).combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _lengths(records: pa.Table, name: str) -> np.ndarray:
    return _listed(records, name).combine_chunks().value_lengths().to_numpy(zero_copy_only=False)


def _nested(records: pa.Table, name: str) -> Sequence[list[int]]:
    return [runs for row in _listed(records, name).to_pylist() for runs in row]
