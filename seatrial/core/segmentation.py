"""Semantic segmentation: the class of every pixel of the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64
from torch import Tensor

from seatrial.core.at_source import at_source, in_view, nearest_at_source
from seatrial.core.sample import Picture, Sample
from seatrial.core.task import LabelMap, Task
from seatrial.core.truth import IGNORED, ClassMap
from seatrial.errors import BadInput, NotApplicable

_BLOCK = 16_000_000
"""Scores held at once while a picture is read at the size of its source (64 MB)."""


@final
@dataclass(frozen=True, kw_only=True)
class SemanticSegmentation(Task):
    """A class for each pixel, judged at the size of the source.

    The network gives scores [batch, classes, h, w] of any resolution over its whole input (read bilinearly at the
    source's pixels before the best class is taken) or classes [batch, h, w] as integers (read at the nearest).
    Source pixels that were cropped away, and those marked `IGNORED`, count for nothing.

    Records: `sample`, `height`, `width`, `n_classes`, and the confusion of the picture without its zeros: `counts`
    of pixels in `cells`, where cell `true * (n_classes + 1) + answer`; answer `n_classes` stands for scores that are
    no numbers. `pixels` were judged, `correct_pixels` of them rightly.
    """

    labels: LabelMap = field(default_factory=LabelMap)

    SCHEMA = pa.schema(
        [
            ("sample", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("n_classes", pa.int32()),
            ("cells", pa.list_(pa.int32())),
            ("counts", pa.list_(pa.int64())),
            ("pixels", pa.int64()),
            ("correct_pixels", pa.int64()),
        ]
    )

    def answer(self, outputs: Any, samples: Sequence[Sample], pictures: Sequence[Picture]) -> pa.Table:
        """Return the records of one batch; the first of equal scores wins.

        Raises BadInput for other outputs, for samples without a map of classes, and for a class that the network does
        not have; NotApplicable where the network saw the picture turned on its side.
        """
        if isinstance(outputs, Mapping):
            outputs = outputs.get("out", outputs.get("logits"))
        scored = isinstance(outputs, Tensor) and outputs.ndim == 4 and outputs.is_floating_point()
        mapped = isinstance(outputs, Tensor) and outputs.ndim == 3 and not outputs.is_floating_point()
        if not (scored or mapped) or len(outputs) != len(samples):
            shape = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"type {type(outputs).__name__}"
            raise BadInput(
                f"an output of {shape} for {len(samples)} pictures",
                "scores [batch, classes, h, w] or integer classes [batch, h, w]",
                "pass a segmenter",
            )
        skipped = self.labels.background
        n_classes = outputs.shape[1] - skipped if scored else len(self.labels.names)
        if n_classes < 1:
            raise BadInput("integer classes without known names", "the number of classes", "name them with --classes")
        rows = []
        for output, sample, picture in zip(outputs.detach().cpu(), samples, pictures, strict=True):
            true = _map_of(sample, n_classes)
            if true.shape != picture.source_size_px:
                raise NotApplicable("the picture lies on its side, its map of classes does not")
            found = _best(output[skipped:], picture) if scored else _mapped(output, picture, skipped, n_classes)
            judged = (true != IGNORED) & in_view(picture)
            pairs = true[judged] * (n_classes + 1) + found[judged]
            table = np.bincount(pairs, minlength=n_classes * (n_classes + 1)).reshape(n_classes, n_classes + 1)
            cells = np.flatnonzero(table)
            counts = table.reshape(-1)[cells]
            rows.append((sample.id, *true.shape, n_classes, cells, counts, int(counts.sum()), int(np.trace(table))))
        columns = list(zip(*rows)) if rows else [()] * len(self.SCHEMA)
        return pa.Table.from_arrays(
            [pa.array(list(column), kind.type) for column, kind in zip(columns, self.SCHEMA)], schema=self.SCHEMA
        )


def _best(scores: Tensor, picture: Picture) -> Int64[np.ndarray, "height width"]:
    """Return the best class of each pixel of the source, the number of classes where a score is no number."""
    height, width = picture.source_size_px
    found = np.empty((height, width), dtype=np.int64)
    step = max(1, _BLOCK // (len(scores) * width))
    scores = scores.float()
    finite = bool(torch.isfinite(scores).all())
    for top in range(0, height, step):
        block = at_source(scores, picture, (top, 0, min(height, top + step), width))
        best = block.numpy().argmax(0)
        if not finite:
            best[torch.isnan(block).any(0).numpy()] = len(scores)
        found[top : top + step] = best
    return found


def _mapped(classes: Tensor, picture: Picture, skipped: int, n_classes: int) -> Int64[np.ndarray, "height width"]:
    found = nearest_at_source(classes.numpy().astype(np.int64), picture) - skipped
    return np.where((found >= 0) & (found < n_classes), found, n_classes)


def _map_of(sample: Sample, n_classes: int) -> Int64[np.ndarray, "height width"]:
    if not isinstance(sample.target, ClassMap):
        raise BadInput(f"sample '{sample.id}' without a map of classes", "pictures with masks", "check --data")
    true = sample.target.classes
    outside = true[(true != IGNORED) & ((true < 0) | (true >= n_classes))]
    if outside.size:
        raise BadInput(
            f"class {outside[0]} in the mask of '{sample.id}'",
            f"0 to {n_classes - 1}, or {IGNORED} for pixels to ignore",
            "pass the data of this model's classes",
        )
    return true
