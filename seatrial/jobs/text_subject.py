"""A text model with the texts it is tried on: opened, tokenized, screened and divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.language import LanguageModelling, MultipleChoice, token_inputs, token_rows
from seatrial.core.sample import Sample
from seatrial.core.sites import shape_of
from seatrial.core.task import Classification, Task
from seatrial.data.draw import limit, split_calibration
from seatrial.data.labeled_texts import open_labeled_texts
from seatrial.data.text_rows import TABLES
from seatrial.data.text_set import TextSet, open_questions
from seatrial.data.text_windows import open_windows
from seatrial.errors import BadInput
from seatrial.jobs.settings import Settings
from seatrial.jobs.text_settings import TextSettings, TextTask
from seatrial.models.opened import Model, open_model
from seatrial.models.text_head import TextHead, text_head
from seatrial.models.tokenizer import Tokenizer, open_tokenizer

_TEXT_OPTIONS = ("weights", "classes")
_TASK_OF: dict[TextHead, TextTask] = {"classification": "classification", "causal": "perplexity"}
CALIBRATION_BATCH = 16
_MOST_NUMBERS = 2**26
"""Logits in a batch: 256 MiB of float32."""


@dataclass(frozen=True, eq=False)
class TextSubject:
    """What a job on a text model works on: `evaluation` and `calibration` share no sample."""

    model: Model
    tokenizer: Tokenizer
    task_name: TextTask
    task: Task
    window: int
    evaluation: TextSet
    calibration: TextSet
    calibration_note: str
    warnings: tuple[str, ...]

    def calibration_batches(self) -> list[dict[str, Tensor]]:
        """Return the calibration samples as `input_ids` and `attention_mask`, sorted by length: little is padding."""
        samples = sorted(self.calibration, key=lambda sample: (_length([sample]), sample.id))
        starts = range(0, len(samples), CALIBRATION_BATCH)
        return [token_inputs(samples[at : at + CALIBRATION_BATCH], self.tokenizer.pad) for at in starts]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The model's class names, else those of the data, else numbers."""
        numbers = range(self.model.n_outputs or 0)
        return self.model.labels.names or self.evaluation.class_names or tuple(str(number) for number in numbers)

    @property
    def longest(self) -> int:
        """The tokens of the longest row of the evaluation."""
        return _length(self.evaluation)

    def batch(self, most: int) -> int:
        """Return how many samples are judged at once: `most`, fewer where their logits would not fit in memory."""
        choices = max(len(token_rows([sample])) for sample in self.evaluation)
        return max(1, min(most, _MOST_NUMBERS // (choices * self.longest * _width(self.model.graph))))

    @property
    def data_data(self) -> dict[str, Any]:
        """The data as the JSON of the job names them."""
        return {
            "name": self.evaluation.name,
            "n": len(self.evaluation),
            "label_rule": self.evaluation.label_rule,
            "window": self.window,
            "digest": self.evaluation.digest,
            "bad": [{"sample": name, "reason": why} for name, why in self.evaluation.bad],
        }


def open_text_subject(
    model: str,
    data: str | Path | None,
    settings: Settings,
    texts: TextSettings,
    *,
    overrides: dict[str, Any] | None = None,
) -> TextSubject:
    """Open a text model with its tokenizer and its data, and divide off the calibration samples.

    model: `hf:REPO_OR_FOLDER`; `overrides` are `weights` and `classes`. Raises BadInput with what to do for a task that
    the head does not answer, options of image models, windows longer than the model reads, and unusable data.
    """
    head = text_head(model)
    if head is None or head not in _TASK_OF:
        what = "a masked language model" if head == "masked" else "no text model"
        raise BadInput(f"'{model}', {what}", "a sequence classifier or a causal language model", "pass another one")
    task = texts.task or _TASK_OF[head]
    if (task == "classification") != (head == "classification"):
        wanted = "classification" if head == "classification" else "perplexity or multiple-choice"
        raise BadInput(f"--task {task} for '{model}'", f"{wanted}, which its head answers", "leave --task out")
    for name in overrides or {}:
        if name not in _TEXT_OPTIONS:
            option = name.replace("_", "-")
            raise BadInput(
                f"--{option} for the text model '{model}'", "options of text models", f"leave --{option} out"
            )
    if data is None:
        raise BadInput(f"'{model}' without texts", "a file of texts", "pass --data FILE")
    tokenizer = open_tokenizer(model)
    window = _window(texts, tokenizer)
    opened = open_model(model, **(overrides or {}))
    assert isinstance(opened, Model)
    reader = _Reader(opened, tokenizer, task, texts, window)
    whole = reader.open(data)
    _check_bad(whole, settings.max_bad)
    notes = [*opened.warnings, *reader.unused(), *whole.notes]
    calibration, evaluation, note = _divided(whole, data, settings, reader)
    _check_ids(opened, [*calibration, *evaluation])
    if settings.limit is not None:
        evaluation = limit(evaluation, settings.limit, seed=settings.seed)
    if whole.bad:
        notes.append(f"{len(whole.bad)} texts were left out, first {whole.bad[0][0]} ({whole.bad[0][1]})")
    if task == "perplexity" and settings.calibration is None and (texts.stride or window) < window:
        notes.append("windows overlap, so calibration samples share tokens with the evaluation; pass --calibration")
    return TextSubject(opened, tokenizer, task, reader.task_of(), window, evaluation, calibration, note, tuple(notes))


@dataclass(frozen=True, eq=False)
class _Reader:
    """Opens files of texts for one model and task."""

    model: Model
    tokenizer: Tokenizer
    task: TextTask
    texts: TextSettings
    window: int

    def open(self, source: str | Path, *, labeled: bool = True) -> TextSet:
        tokenizer, texts = self.tokenizer, self.texts
        if self.task == "perplexity":
            # A running text may calibrate beside a table of texts.
            column = texts.text_column if labeled or Path(source).suffix.lower() in TABLES else None
            return open_windows(
                source,
                tokenizer.encode,
                window=self.window,
                stride=texts.stride,
                begin=tokenizer.begin,
                text_column=column,
            )
        if self.task == "multiple-choice":
            return open_questions(source, tokenizer.encode, length=self.window, begin=tokenizer.begin)
        return open_labeled_texts(
            source,
            tokenizer.encode,
            length=self.window,
            front=tokenizer.front,
            back=tokenizer.back,
            text_column=texts.text_column,
            label_column=texts.label_column,
            class_names=self.model.labels.names or None,
            n_classes=self.model.n_outputs,
            labeled=labeled,
        )

    def task_of(self) -> Task:
        if self.task == "classification":
            return Classification(self.model.labels)
        return LanguageModelling() if self.task == "perplexity" else MultipleChoice()

    def unused(self) -> list[str]:
        """Return a sentence for each option that this task does not read."""
        read = {
            "classification": ("text_column", "label_column", "window"),
            "perplexity": ("text_column", "window", "stride"),
            "multiple-choice": ("window",),
        }[self.task]
        names = ("text_column", "label_column", "window", "stride")
        given = [name for name in names if getattr(self.texts, name) is not None and name not in read]
        return [f"--{name.replace('_', '-')} plays no part in {self.task}" for name in given]


def _window(texts: TextSettings, tokenizer: Tokenizer) -> int:
    if texts.window is not None and texts.window > tokenizer.length:
        most = f"at most {tokenizer.length}, which the model reads at once"
        raise BadInput(f"--window {texts.window}", most, "give a smaller number, or leave it out")
    return texts.window or tokenizer.length


def _check_bad(texts: TextSet, most: float) -> None:
    of = len(texts) + len(texts.bad)
    if len(texts.bad) > most * of:
        first, why = texts.bad[0]
        raise BadInput(
            f"{len(texts.bad)} of {of} texts cannot be used, first '{first}': {why}",
            f"at most {most:.3g} of them (--max-bad)",
            "mend or remove those rows, or raise --max-bad",
        )


def _check_ids(model: Model, samples: Sequence[Sample]) -> None:
    size = getattr(getattr(model.module, "config", None), "vocab_size", None)
    highest = max(int(row.max()) for row in token_rows(samples))
    if isinstance(size, int) and highest >= size:
        came = f"the token id {highest} for a vocabulary of {size}"
        raise BadInput(came, f"ids from 0 to {size - 1}", "save the model's own tokenizer with it")


def _divided(whole: TextSet, data: str | Path, settings: Settings, reader: _Reader) -> tuple[TextSet, TextSet, str]:
    wanted = settings.calibration_samples
    if settings.calibration is None:
        calibration, evaluation = split_calibration(whole, wanted, seed=settings.seed)
        if not len(calibration):
            raise BadInput(f"{len(whole)} texts", "enough to divide some off", "add texts, or pass --calibration")
        return calibration, evaluation, f"{len(calibration)} samples drawn from the data and left out of the evaluation"
    if Path(settings.calibration).expanduser().resolve() == Path(data).expanduser().resolve():
        raise BadInput(
            "calibration data equal to --data", "other texts", "leave --calibration out: a draw is divided off"
        )
    pool = reader.open(settings.calibration, labeled=False)
    drawn = limit(pool, wanted, seed=settings.seed)
    return drawn, whole, f"{len(drawn)} samples drawn from {settings.calibration}"


def _length(samples: Sequence[Sample] | TextSet) -> int:
    return max(len(row) for row in token_rows(list(samples)))


def _width(graph: Graph) -> int:
    """Return the numbers that a graph gives for each token, or for each text."""
    output = next(node for node in graph.nodes() if node.op == "output").args[0]
    last = shape_of(output)[-1] if isinstance(output, fx.Node) else 1
    return last if isinstance(last, int) else 1
