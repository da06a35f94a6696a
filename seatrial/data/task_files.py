"""Open data for a task: pictures with classes, objects or maps, texts, questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from seatrial.data.array_set import ArraySet
from seatrial.data.detection_set import DetectionSet
from seatrial.data.files import open_data
from seatrial.data.image_set import ImageSet
from seatrial.data.mask_set import MaskSet, open_masks
from seatrial.data.object_files import open_objects
from seatrial.data.text_set import Encode, TextSet, open_questions, open_texts
from seatrial.errors import BadInput, unknown_name

TaskName = Literal[
    "classification",
    "detection",
    "instance-segmentation",
    "semantic-segmentation",
    "language-modelling",
    "multiple-choice",
]
TASKS: tuple[TaskName, ...] = (
    "classification",
    "detection",
    "instance-segmentation",
    "semantic-segmentation",
    "language-modelling",
    "multiple-choice",
)


def open_task_data(
    source: str | Path,
    task: str,
    *,
    class_names: Sequence[str] | None = None,
    wnids: Sequence[str] | None = None,
    classes_file: Path | None = None,
    n_classes: int | None = None,
    encode: Encode | None = None,
    length: int | None = None,
    begin: int | None = None,
) -> ImageSet | ArraySet | DetectionSet | MaskSet | TextSet:
    """Open the data of a task by its name; formats are found out from what lies there.

    `encode`, `length` (tokens) and `begin` (a token id) are for texts, the others for pictures. Raises BadInput as
    `open_data`, `open_objects`, `open_masks`, `open_texts` and `open_questions` do, and for an unknown task.
    """
    if task == "classification":
        return open_data(source, class_names=class_names, wnids=wnids, classes_file=classes_file, n_classes=n_classes)
    if task in ("detection", "instance-segmentation"):
        masks = task == "instance-segmentation"
        return open_objects(
            source, masks=masks, class_names=class_names, classes_file=classes_file, n_classes=n_classes
        )
    if task == "semantic-segmentation":
        return open_masks(source, class_names=class_names, n_classes=n_classes)
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)
    if encode is None or length is None:
        raise BadInput(f"{task} without a tokenizer or a length", "both", "open them with the model")
    opened = open_texts if task == "language-modelling" else open_questions
    return opened(source, encode, length=length, begin=begin)
