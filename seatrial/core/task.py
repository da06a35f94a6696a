"""What an output means: labels, the per-sample record, and how a batch of answers becomes records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from seatrial.core.noise import Boxes
from seatrial.core.sample import Picture, Sample
from seatrial.errors import BadInput, NotApplicable


@dataclass(frozen=True)
class LabelMap:
    """Class names of the model's outputs; `background` outputs stand before the first class and are cut off."""

    names: tuple[str, ...] = ()
    wnids: tuple[str, ...] = ()
    background: int = 0
    rule: str = "as the model"


class Task(ABC):
    """Turns outputs into per-sample records. Law: a record depends on its own sample's output alone."""

    @abstractmethod
    def answer(self, outputs: Any, samples: Sequence[Sample], pictures: Sequence[Picture]) -> pa.Table:
        """Return one row per sample with at least `sample` (string), in the order of `samples`.

        `pictures` hold how each sample stands in the network's input; tasks that do not look back take none.
        """

    def under(self, boxes: Boxes) -> Task:
        """Return the task in a system that counts pixels of boxes so; raises NotApplicable where it decodes none."""
        if boxes != "as-trained":
            raise NotApplicable("no boxes are decoded")
        return self


@dataclass(frozen=True)
class Classification(Task):
    """Single-label classification.

    Records: `sample`, `label`, `answer` (top-1 class), `correct`, `in_top5`, `confidence` (softmax of the answer, in
    [0, 1]), `margin` (score of the label minus the best other score) and, on clean data, nothing else. A sample with
    a score that is not a number is wrong, with confidence 0 and margin -inf.
    """

    labels: LabelMap = field(default_factory=LabelMap)
    probabilities: bool = False
    """The outputs are probabilities already (a deployed model that ends in softmax)."""

    SCHEMA = pa.schema(
        [
            ("sample", pa.string()),
            ("label", pa.int32()),
            ("answer", pa.int32()),
            ("correct", pa.bool_()),
            ("in_top5", pa.bool_()),
            ("confidence", pa.float32()),
            ("margin", pa.float32()),
        ]
    )

    def scores(self, outputs: Tensor) -> np.ndarray:
        """Return float32 [batch, classes] without background classes; raises BadInput for other shapes."""
        if outputs.ndim != 2:
            raise BadInput(
                f"an output of shape {tuple(outputs.shape)}", "[batch, classes] for classification", "pass a classifier"
            )
        # Contiguous rows, so that a sum over classes does not depend on the batch around a sample.
        return outputs.detach()[:, self.labels.background :].float().contiguous().cpu().numpy()

    def divergence(self, reference: Tensor, outputs: Tensor) -> np.ndarray:
        """Return KL(reference || outputs) of the class probabilities, float64 [batch] in nats; NaN scores give NaN."""
        logs = []
        for scores in (self.scores(reference), self.scores(outputs)):
            values = scores.astype(np.float64)
            if self.probabilities:
                values = np.log(np.maximum(values, 1e-12))
            values -= values.max(1, keepdims=True)
            logs.append(values - np.log(np.exp(values).sum(1, keepdims=True)))
        return np.maximum((np.exp(logs[0]) * (logs[0] - logs[1])).sum(1), 0)

    def answer(self, outputs: Tensor, samples: Sequence[Sample], pictures: Sequence[Picture] = ()) -> pa.Table:
        """Return the records of one batch; the first of equal scores wins.

        Raises BadInput for a label outside the model's classes.
        """
        scores = self.scores(outputs)
        wanted = np.array([sample.label for sample in samples], dtype=np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < scores.shape[1]:
            outside = next(label for label in wanted.tolist() if not 0 <= label < scores.shape[1])
            raise BadInput(f"label {outside}", f"0 to {scores.shape[1] - 1}", "pass the data of this model's classes")
        unusable = np.isnan(scores).any(1)
        scores = np.where(np.isnan(scores), np.float32(-np.inf), scores)
        rows = np.arange(len(wanted))
        best = scores.argmax(1)
        own = scores[rows, wanted]
        others = scores.copy()
        others[rows, wanted] = -np.inf
        with np.errstate(invalid="ignore"):
            shifted = scores if self.probabilities else np.exp(scores - scores.max(1, keepdims=True))
            confidence = shifted[rows, best] / np.maximum(shifted.sum(1), np.float32(1e-30))
            margin = own - others.max(1)
        columns = [
            pa.array([sample.id for sample in samples], pa.string()),
            pa.array(wanted, pa.int32()),
            pa.array(best, pa.int32()),
            pa.array((best == wanted) & ~unusable),
            pa.array(((others > own[:, None]).sum(1) < 5) & ~unusable),
            pa.array(np.where(unusable, np.float32(0), confidence), pa.float32()),
            pa.array(np.where(unusable, np.float32(-np.inf), margin), pa.float32()),
        ]
        return pa.Table.from_arrays(columns, schema=self.SCHEMA)
