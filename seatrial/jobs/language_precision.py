"""What a narrower float type changes in a language model: perplexity of texts, or answers to questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seatrial.bench.texts import text_records
from seatrial.core.chance import generator
from seatrial.core.graph import GraphPredictor
from seatrial.core.language import LanguageModelling, MultipleChoice
from seatrial.core.noise import NoiseSpec
from seatrial.core.task import Task
from seatrial.data.draw import limit as drawn
from seatrial.data.task_files import open_task_data
from seatrial.data.text_set import TextSet
from seatrial.deploy.machine import this_machine
from seatrial.deploy.torch_target import torch_threads
from seatrial.errors import BadInput, unknown_name
from seatrial.jobs.measured import blank_cell
from seatrial.jobs.robust_cells import FAMILY_KEYS
from seatrial.jobs.settings import default_threads
from seatrial.metrics.intervals import paired_difference, wilson
from seatrial.metrics.joining import column
from seatrial.metrics.language import choice_accuracy, perplexity, perplexity_interval, perplexity_ratio_interval
from seatrial.models.opened import Model, open_model
from seatrial.models.tokenizer import open_tokenizer

_TASKS: dict[str, Task] = {"language-modelling": LanguageModelling(), "multiple-choice": MultipleChoice()}
_PRECISIONS = ("fp16", "bf16")


def language_precision(
    model: str | Path | Model,
    data: str | Path | TextSet,
    task: str = "language-modelling",
    *,
    precisions: Sequence[str] = _PRECISIONS,
    length: int | None = None,
    limit: int | None = None,
    batch: int = 8,
    seed: int = 0,
    threads: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Return how a causal language model answers in fp16 and bf16 mixed precision, against itself in float32.

    model: `hf:REPO_OR_FOLDER`, or opened, then with `data` opened too (`open_task_data` with its tokenizer). `task` is
    "language-modelling" (metric `perplexity`; the `difference` is its ratio to float32's, less 1) or "multiple-choice"
    (`accuracy`, likelihoods divided by length). `length` in tokens, by default what the model reads at once.

    Cells have the keys of `seatrial robustness`, intervals are at 95 %; `churn` is the share of changed answers to
    questions. Identical records have the status `no-noise`. Raises BadInput for other models, tasks and precisions.
    Source: SysNoise (Wang et al. 2023), precision of language models.
    """
    if task not in _TASKS:
        raise unknown_name("text task", task, _TASKS)
    for precision in precisions:
        if precision not in _PRECISIONS:
            raise unknown_name("precision", precision, _PRECISIONS)
    opened = model if isinstance(model, Model) else open_model(model)
    if not isinstance(opened, Model) or opened.kind != "text":
        raise BadInput(f"'{opened.name}'", "a causal language model", "give hf:REPO_OR_FOLDER; others go elsewhere")
    if isinstance(data, TextSet):
        samples = data
    else:
        if not opened.source.startswith("hf:"):
            raise BadInput(
                f"'{data}' for '{opened.name}', which brings no tokenizer",
                "texts that were opened",
                "open them with open_task_data and the tokenizer's encode",
            )
        tokenizer = open_tokenizer(opened.source)
        found = open_task_data(
            data, task, encode=tokenizer.encode, length=length or tokenizer.length, begin=tokenizer.begin
        )
        assert isinstance(found, TextSet)
        samples = found
    samples = samples if limit is None else drawn(samples, limit, seed=seed)
    used = threads or default_threads()
    judged = _perplexity if task == "language-modelling" else _choices

    def records(arithmetic: str) -> pa.Table:
        name = "float32" if arithmetic == "as-is" else arithmetic

        def told(done: int, total: int) -> None:
            if progress is not None:
                progress(done, total, name)

        with torch_threads(used):
            return text_records(
                GraphPredictor(opened.graph, "cpu", arithmetic), _TASKS[task], samples, batch=batch, progress=told
            ).combine_chunks()

    clean = records("as-is")
    cells: list[dict[str, Any]] = []
    for precision in precisions:
        after = records(precision)
        same = after.equals(clean)
        row = blank_cell(opened.name, "float", "torch", NoiseSpec("system", "precision", precision), None)
        row |= {"n": len(after), "status": "no-noise" if same else "done"}
        row |= {"reason": "all records are identical on this build" if same else None, **dict.fromkeys(FAMILY_KEYS)}
        cells.append(row | judged(clean, after, same, generator(seed, "precision", precision)))
    result = {
        "model": {"name": opened.name, "source": opened.source, "digest": opened.digest},
        "data": {"name": samples.name, "n": len(samples), "digest": samples.digest},
        "task": task,
        "machine": asdict(this_machine(used)),
        "seed": seed,
        "cells": cells,
        "warnings": list(opened.warnings),
    }
    return json.loads(json.dumps(result, allow_nan=False))


def _perplexity(clean: pa.Table, after: pa.Table, same: bool, rng: np.random.Generator) -> dict[str, Any]:
    before = perplexity(clean)
    row: dict[str, Any] = {"metric": "perplexity", "clean": before}
    if same:
        return row
    value = perplexity(after)
    if not np.isfinite(value):
        return row | {"status": "failed", "reason": "a logit is no number, or the perplexity is beyond all numbers"}
    interval, ratio = perplexity_interval(after, rng=rng), perplexity_ratio_interval(clean, after, rng=rng)
    row |= {"value": value, "low": interval.low, "high": interval.high, "difference": value / before - 1}
    return row | {"difference_low": ratio.low - 1, "difference_high": ratio.high - 1}


def _choices(clean: pa.Table, after: pa.Table, same: bool, rng: np.random.Generator) -> dict[str, Any]:
    row: dict[str, Any] = {"metric": "accuracy", "clean": choice_accuracy(clean)}
    if same:
        return row
    right = [column(table, "correct_by_length") for table in (clean, after)]
    interval, moved = wilson(int(right[1].sum()), len(after)), paired_difference(*right, rng=rng)
    changed = column(clean, "answer_by_length") != column(after, "answer_by_length")
    churn = wilson(int(changed.sum()), len(changed))
    row |= {"value": choice_accuracy(after), "low": interval.low, "high": interval.high}
    row |= {"difference": moved.difference, "difference_low": moved.low, "difference_high": moved.high}
    return row | {"churn": {"value": float(changed.mean()), "low": churn.low, "high": churn.high}}
