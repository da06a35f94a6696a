"""Object detection: boxes, scores and classes out of what detectors give, in pixels of the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64
from torch import Tensor

from seatrial.core.boxes import corners, decode_yolox, suppress
from seatrial.core.noise import Boxes
from seatrial.core.sample import Picture, Sample
from seatrial.core.task import LabelMap, Task
from seatrial.core.truth import Objects
from seatrial.errors import BadInput, NotApplicable

Layout = Literal["listed", "arrays", "yolox", "yolov5", "yolov8"]
_BY_ITSELF = "the detector decodes its boxes by itself"


@final
@dataclass(frozen=True, eq=False)
class Found:
    """What a detector found in one picture, best first, in pixels of the source.

    `rows` says which of the network's own entries each box was; `unusable` counts entries that are no numbers.
    """

    boxes_px: Float32[np.ndarray, "found 4"]
    scores: Float32[np.ndarray, " found"]
    classes: Int64[np.ndarray, " found"]
    rows: Int64[np.ndarray, " found"]
    unusable: int


@final
@dataclass(frozen=True, kw_only=True)
class Detection(Task):
    """Objects as boxes.

    `layout` is what the network gives, boxes as x1, y1, x2, y2 in pixels of its input where nothing else is said:
    `listed`, a mapping with `boxes` [n, 4], `scores` [n] and `labels` [n] for each picture (torchvision's detectors);
    `arrays`, the tensors [batch, n, 4], [batch, n] and [batch, n] side by side, unused rows with score 0, or two of
    them, the second with a score a class [batch, n, classes]; `yolox`, [batch, locations, 5 + classes] not yet
    decoded; `yolov5`, the same decoded to center and size; `yolov8`, [batch, 4 + classes, locations], decoded.
    What the network has not suppressed by itself (all but `listed` and three `arrays`) is suppressed class by class
    at overlaps above `iou_threshold`. Of each picture the `most` best are kept. `labels.background` counts labels
    before the first class, 1 for torchvision's.
    `boxes` says where whole pixels are counted, see `seatrial.core.noise.System`.

    Records: `sample`, `height` and `width` of the source, `boxes` (4 numbers a box, one after the other), `scores`
    and `classes` of what was found, `unusable` (entries that are no numbers), and what is there: `true_boxes`,
    `true_classes`, `true_crowd`, `true_areas`.
    """

    labels: LabelMap = field(default_factory=LabelMap)
    layout: Layout = "listed"
    strides: tuple[int, ...] = (8, 16, 32)
    score_threshold: float = 0.001
    iou_threshold: float = 0.65
    most: int = 100
    boxes: Boxes = "as-trained"

    SCHEMA = pa.schema(
        [
            ("sample", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("boxes", pa.list_(pa.float32())),
            ("scores", pa.list_(pa.float32())),
            ("classes", pa.list_(pa.int32())),
            ("unusable", pa.int32()),
            ("true_boxes", pa.list_(pa.float64())),
            ("true_classes", pa.list_(pa.int32())),
            ("true_crowd", pa.list_(pa.bool_())),
            ("true_areas", pa.list_(pa.float64())),
        ]
    )

    def answer(self, outputs: Any, samples: Sequence[Sample], pictures: Sequence[Picture]) -> pa.Table:
        """Return the records of one batch.

        Raises BadInput for outputs that are no boxes in this layout and for samples without known objects;
        NotApplicable where whole pixels should be counted in a decoding that the network does by itself.
        """
        self.under(self.boxes)
        found = self.found(outputs, pictures)
        true = [objects_of(sample) for sample in samples]
        columns = [
            [sample.id for sample in samples],
            [picture.source_size_px[0] for picture in pictures],
            [picture.source_size_px[1] for picture in pictures],
            [one.boxes_px.reshape(-1) for one in found],
            [one.scores for one in found],
            [one.classes for one in found],
            [one.unusable for one in found],
            [one.boxes_px.reshape(-1) for one in true],
            [one.classes for one in true],
            [one.crowd for one in true],
            [one.areas_px for one in true],
        ]
        return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, self.SCHEMA)], schema=self.SCHEMA)

    def under(self, boxes: Boxes) -> Detection:
        """Return the task with its boxes decoded so; raises NotApplicable where the network decodes them by itself."""
        if boxes != "as-trained" and self.layout in ("listed", "arrays"):
            raise NotApplicable(_BY_ITSELF)
        return replace(self, boxes=boxes)

    def found(self, outputs: Any, pictures: Sequence[Picture]) -> list[Found]:
        """Return what was found in each picture; raises as `answer` does."""
        split = self._listed if self.layout == "listed" else self._side_by_side
        entries = split(outputs, len(pictures))
        return [self._placed(self._raw(entry, picture), picture) for entry, picture in zip(entries, pictures)]

    def _listed(self, outputs: Any, count: int) -> list[dict[str, np.ndarray]]:
        if not isinstance(outputs, Sequence) or len(outputs) != count:
            raise self._refused(f"an output of {_described(outputs)} for {count} pictures")
        for entry in outputs:
            if not isinstance(entry, Mapping) or not {"boxes", "scores", "labels"} <= entry.keys():
                raise self._refused(f"an output of {_described(entry)} for a picture")
        return [{name: _plain(entry[name]) for name in ("boxes", "scores", "labels")} for entry in outputs]

    def _side_by_side(self, outputs: Any, count: int) -> list[dict[str, np.ndarray]]:
        if self.layout == "arrays":
            parts = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
            if isinstance(parts, Tensor) or not isinstance(parts, Sequence) or len(parts) not in (2, 3):
                raise self._refused(f"an output of {_described(outputs)}")
            names = ("boxes", "scores", "labels")[: len(parts)]
        else:
            parts, names = (outputs,), ("raw",)
        if not all(isinstance(part, Tensor) and part.ndim >= 2 and len(part) == count for part in parts):
            raise self._refused(f"an output of {_described(outputs)} for {count} pictures")
        return [{name: _plain(part[row]) for name, part in zip(names, parts)} for row in range(count)]

    def _raw(self, entry: Mapping[str, np.ndarray], picture: Picture) -> _Raw:
        """Return boxes in pixels of the input, unsuppressed ones after suppression."""
        if "labels" in entry:
            boxes, scores, labels = entry["boxes"], entry["scores"], entry["labels"]
            if boxes.shape != (scores.size, 4) or labels.shape != scores.shape or scores.ndim != 1:
                raise self._refused(f"boxes {boxes.shape}, scores {scores.shape}, labels {labels.shape} for a picture")
            classes = np.rint(labels).astype(np.int64) - self.labels.background
            raw = _Raw.of(boxes, scores, classes)
            return raw.only((classes >= 0) & ~(raw.scores <= 0)).above(self.score_threshold)
        if "raw" in entry:
            boxes, scores = self._decoded(entry["raw"], picture)
        else:
            boxes, scores = entry["boxes"].astype(np.float32), entry["scores"].astype(np.float32)
            if scores.ndim != 2 or boxes.shape != (len(scores), 4):
                raise self._refused(f"boxes {boxes.shape} and scores {scores.shape} for a picture")
            scores = scores[:, self.labels.background :]
        best = scores.argmax(1)
        usable = _Raw.of(boxes, scores[np.arange(len(best)), best], best).above(self.score_threshold).usable()
        offset_px = 1 if self.boxes == "everywhere" else 0
        kept = suppress(
            usable.boxes, usable.scores, usable.classes, iou=self.iou_threshold, most=self.most, offset_px=offset_px
        )
        return usable.only(kept)

    def _decoded(self, raw: np.ndarray, picture: Picture) -> tuple[np.ndarray, np.ndarray]:
        """Return corners in pixels of the input and the score of each class."""
        raw = np.ascontiguousarray(raw.T if self.layout == "yolov8" else raw, dtype=np.float32)
        first = 4 if self.layout == "yolov8" else 5
        if raw.ndim != 2 or raw.shape[1] <= first:
            raise self._refused(f"an output of shape {raw.shape} for a picture")
        scores = raw[:, first:] if self.layout == "yolov8" else raw[:, 4:5] * raw[:, 5:]
        if self.layout == "yolox":
            height, width = picture.pixels.shape[:2]
            centers, sizes = decode_yolox(raw, (height, width), self.strides)
        else:
            centers, sizes = raw[:, :2], raw[:, 2:4]
        return corners(centers, sizes, offset_px=0 if self.boxes == "as-trained" else 1), scores

    def _placed(self, raw: _Raw, picture: Picture) -> Found:
        assert picture.placement is not None, "a picture that lost its map to the source"
        usable = raw.usable()
        order = np.argsort(-usable.scores, kind="stable")[: self.most]
        usable = usable.only(order)
        height, width = picture.source_size_px
        boxes = picture.placement.to_source(usable.boxes.astype(np.float64))
        boxes = np.clip(boxes, 0, np.array([width, height, width, height])).astype(np.float32)
        inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return Found(boxes[inside], usable.scores[inside], usable.classes[inside], usable.rows[inside], usable.unusable)

    def _refused(self, came: str) -> BadInput:
        wanted = "boxes, scores and labels" if self.layout in ("listed", "arrays") else "boxes with scores"
        return BadInput(
            came, f"{wanted} of each picture, in the layout '{self.layout}'", "pass a detector, or state its layout"
        )


def layout_of(outputs: Any, input_px: tuple[int, int], strides: Sequence[int] = (8, 16, 32)) -> Layout:
    """Return the layout that outputs for an input of `input_px` (height, width) have by their shape.

    A YOLO head has as many locations as its grids have cells, YOLOv5 three times as many, YOLOv8 has them last.
    Decoded YOLOX outputs look like raw ones: state `yolov5` for them. Raises BadInput where no layout fits.
    """
    cells = sum((input_px[0] // stride) * (input_px[1] // stride) for stride in strides)
    match outputs:
        case Tensor(ndim=3) if outputs.shape[1] == cells and outputs.shape[2] > 5:
            return "yolox"
        case Tensor(ndim=3) if outputs.shape[1] == 3 * cells and outputs.shape[2] > 5:
            return "yolov5"
        case Tensor(ndim=3) if outputs.shape[2] == cells and outputs.shape[1] > 4:
            return "yolov8"
        case [Mapping(), *_]:
            return "listed"
        case [Tensor(), Tensor()] | [Tensor(), Tensor(), Tensor()]:
            return "arrays"
    raise BadInput(
        f"an output of {_described(outputs)} for an input of {input_px[0]}x{input_px[1]} pixels",
        "boxes, scores and labels, or the head of a YOLO",
        "pass a detector, or state its layout",
    )


def objects_of(sample: Sample) -> Objects:
    """Return what stands in the picture; raises BadInput where that is not known."""
    if not isinstance(sample.target, Objects):
        raise BadInput(f"sample '{sample.id}' without boxes", "pictures with annotated objects", "check --data")
    return sample.target


@final
@dataclass(frozen=True, eq=False)
class _Raw:
    """Entries in pixels of the input, with their numbers in the network's output."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    rows: np.ndarray
    unusable: int = 0

    @classmethod
    def of(cls, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> _Raw:
        return cls(boxes.astype(np.float32), scores.astype(np.float32), classes, np.arange(len(boxes)))

    def only(self, which: np.ndarray) -> _Raw:
        return _Raw(self.boxes[which], self.scores[which], self.classes[which], self.rows[which], self.unusable)

    def above(self, threshold: float) -> _Raw:
        # Scores that are no numbers stay, to be counted.
        return self.only(~(self.scores < np.float32(threshold)))

    def usable(self) -> _Raw:
        """Return the entries that are numbers; the others are counted."""
        good = np.isfinite(self.boxes).all(1) & np.isfinite(self.scores)
        kept = self.only(good)
        return _Raw(kept.boxes, kept.scores, kept.classes, kept.rows, self.unusable + int(np.count_nonzero(~good)))


def _plain(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy() if isinstance(tensor, Tensor) else np.asarray(tensor)


def _described(outputs: Any) -> str:
    if isinstance(outputs, Tensor):
        return f"shape {tuple(outputs.shape)}"
    if isinstance(outputs, Mapping):
        return f"the entries {', '.join(map(str, outputs)) or 'none'}"
    if isinstance(outputs, Sequence) and not isinstance(outputs, str):
        return f"{len(outputs)} parts"
    return f"type {type(outputs).__name__}"
