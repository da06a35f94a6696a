"""Instance segmentation: what detection finds, and the mask of each object in pixels of the source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Int32
from torch import Tensor

from seatrial.core.at_source import at_source
from seatrial.core.detection import Detection, Found, objects_of
from seatrial.core.noise import Boxes
from seatrial.core.runs import runs_of
from seatrial.core.sample import Picture, Sample
from seatrial.core.task import LabelMap, Task
from seatrial.errors import BadInput


@final
@dataclass(frozen=True, kw_only=True)
class InstanceSegmentation(Task):
    """Objects as boxes and masks; the network gives what `detection` reads as `listed`, and `masks` beside it.

    Masks are [n, 1, h, w] or [n, h, w] over the whole input, yes and no or shares; a share above `mask_threshold` is
    inside. A mask is read in its box alone, as torchvision's detectors draw it.

    Records: those of `detection`, and `runs` and `true_runs`, the masks as `seatrial.core.runs` writes them.
    """

    detection: Detection = field(default_factory=Detection)
    mask_threshold: float = 0.5

    SCHEMA = pa.schema(
        [
            *Detection.SCHEMA,
            ("runs", pa.list_(pa.list_(pa.int32()))),
            ("true_runs", pa.list_(pa.list_(pa.int32()))),
        ]
    )

    @property
    def labels(self) -> LabelMap:
        """The classes of the objects."""
        return self.detection.labels

    def answer(self, outputs: Any, samples: Sequence[Sample], pictures: Sequence[Picture]) -> pa.Table:
        """Return the records of one batch; raises as `Detection.answer` does, and BadInput where masks are missing."""
        table = self.detection.answer(outputs, samples, pictures)
        found = self.detection.found(outputs, pictures)
        runs = [self._runs(*row) for row in zip(outputs, found, pictures, strict=True)]
        true = [_true_runs(sample) for sample in samples]
        for name, column in (("runs", runs), ("true_runs", true)):
            table = table.append_column(name, pa.array(column, self.SCHEMA.field(name).type))
        return table

    def under(self, boxes: Boxes) -> InstanceSegmentation:
        """Return the task with its boxes decoded so; raises NotApplicable where the network decodes them by itself."""
        return replace(self, detection=self.detection.under(boxes))

    def _runs(self, entry: Any, found: Found, picture: Picture) -> list[Int32[np.ndarray, " runs"]]:
        masks = entry.get("masks") if isinstance(entry, Mapping) else None
        if not isinstance(masks, Tensor) or masks.ndim not in (3, 4) or (masks.ndim == 4 and masks.shape[1] != 1):
            came = "no masks" if masks is None else f"masks of shape {tuple(getattr(masks, 'shape', ()))}"
            raise BadInput(came, "masks [n, 1, h, w] beside boxes, scores and labels", "pass an instance segmenter")
        if len(masks) != len(entry["boxes"]):
            raise BadInput(f"{len(masks)} masks for {len(entry['boxes'])} boxes", "one a box", "mend the segmenter")
        flat = masks.detach().reshape(len(masks), *masks.shape[-2:])
        return [runs_of(self._mask(flat[row], box, picture)) for row, box in zip(found.rows, found.boxes_px)]

    def _mask(self, mask: Tensor, box: np.ndarray, picture: Picture) -> Bool[np.ndarray, "height width"]:
        height, width = picture.source_size_px
        # Pixels that the box touches, so that a thin object keeps its border.
        window = (
            max(0, math.floor(box[1])),
            max(0, math.floor(box[0])),
            min(height, math.ceil(box[3])),
            min(width, math.ceil(box[2])),
        )
        drawn = np.zeros((height, width), dtype=bool)
        inside = at_source(mask.to(torch.float32)[None].cpu(), picture, window)[0] > self.mask_threshold
        drawn[window[0] : window[2], window[1] : window[3]] = inside.numpy()
        return drawn


def _true_runs(sample: Sample) -> tuple[Int32[np.ndarray, " runs"], ...]:
    objects = objects_of(sample)
    if objects.runs is None:
        raise BadInput(f"sample '{sample.id}' without masks", "objects annotated with masks", "judge it as detection")
    return objects.runs
