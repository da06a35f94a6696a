"""Language models on texts and questions: no noise, one table of records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import pyarrow as pa
import torch

from seatrial.core.language import token_inputs
from seatrial.core.predictor import Predictor
from seatrial.core.sample import Dataset
from seatrial.core.task import Task
from seatrial.errors import BadInput

T = TypeVar("T")


def text_records(
    predictor: Predictor,
    task: Task,
    dataset: Dataset,
    *,
    batch: int = 8,
    pad: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """Return the records of a task over texts, in order of id, from batches of `batch` samples.

    A question brings a row a choice, so batches of questions are larger for the predictor. Shorter rows are filled up
    with the id `pad`. `progress` is called with (done, total) samples. Raises BadInput without a sample, and as the
    task does.
    """
    if not len(dataset) or batch < 1:
        raise BadInput(f"{len(dataset)} texts in batches of {batch}", "at least 1 of each", "check --data and --limit")
    order = sorted(range(len(dataset)), key=dataset.ids.__getitem__)
    parts: list[pa.Table] = []
    done = 0
    for indices in _batches(order, batch):
        samples = [dataset[index] for index in indices]
        with torch.no_grad():
            parts.append(task.answer(predictor(token_inputs(samples, pad)), samples, ()))
        done += len(samples)
        if progress is not None:
            progress(done, len(order))
    return pa.concat_tables(parts)


def _batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
