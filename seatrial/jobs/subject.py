"""A model with the data it is tried on: opened, matched, screened and divided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seatrial.core.pipeline import Pipeline
from seatrial.core.sample import Dataset
from seatrial.core.task import Classification, LabelMap
from seatrial.data.array_set import ArraySet
from seatrial.data.draw import limit, split_calibration
from seatrial.data.files import open_data, open_training_digits
from seatrial.data.image_set import ImageSet
from seatrial.data.load import load_input
from seatrial.data.screen import screen
from seatrial.errors import BadInput
from seatrial.jobs.digit_models import EDGE_PX, MODELS, trained
from seatrial.jobs.settings import Settings
from seatrial.models.artefact import ArtefactModel, with_labels
from seatrial.models.labels import fit_labels
from seatrial.models.opened import Model, open_model

Samples = ImageSet | ArraySet
CALIBRATION_BATCH = 8
"""Few at a time, so that activations stay in the caches (docs/decisions/0005-default-ranges.md)."""
_UNCALIBRATED = "none: nothing is quantized"


@dataclass(frozen=True, eq=False)
class Subject:
    """What a job works on: `evaluation` and `calibration` share no sample; `bad` lists samples left out."""

    model: Model | ArtefactModel
    pipeline: Pipeline
    task: Classification
    evaluation: Samples
    calibration: Samples | None
    calibration_note: str
    bad: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def calibration_batches(self) -> list[Tensor]:
        """Return the calibration samples as float32 batches [n, 3, height, width] in [0, 1]."""
        if self.calibration is None:
            raise BadInput("no calibration data", "samples to calibrate on", "pass --calibration")
        return load_batches(self.calibration, self.pipeline)

    @property
    def model_data(self) -> dict[str, Any]:
        """The model as the JSON of a trial names it."""
        model = self.model
        labels = self.task.labels.rule
        return {"name": model.name, "source": model.source, "digest": model.digest, "labels": labels}

    @property
    def data_data(self) -> dict[str, Any]:
        """The data as the JSON of a trial names them."""
        return {
            "name": self.evaluation.name,
            "n": len(self.evaluation),
            "classes": len(set(self.evaluation.labels)),
            "label_rule": self.evaluation.label_rule,
            "digest": self.evaluation.digest,
            "bad": [{"sample": name, "reason": why} for name, why in self.bad],
        }


def load_batches(samples: Dataset, pipeline: Pipeline, size: int = CALIBRATION_BATCH) -> list[Tensor]:
    """Return all samples as batches, in order."""
    inputs = [load_input(pipeline, sample) for sample in samples]
    return [torch.stack(inputs[start : start + size]) for start in range(0, len(inputs), size)]


def open_subject(
    model: str | Path | nn.Module,
    data: str | Path | Iterable[Any] | None,
    settings: Settings,
    *,
    overrides: dict[str, Any] | None = None,
    calibrate: bool = True,
    held_out: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Subject:
    """Open a model and its data, match labels, leave out bad samples, and divide off the calibration samples.

    `overrides` go to `open_model` (weights, mean, std, resize, crop, interpolation, input_size, classes). Without
    `data` the built-in digits are used. A deployed file is not calibrated and gets all samples, unless `held_out`
    takes away those of the networks that it stands beside. Raises BadInput with what to do.
    """
    options = dict(overrides or {})
    classes = options.get("classes")
    if isinstance(model, str) and model in MODELS:
        opened: Model | ArtefactModel = _digit_model(model, progress)
    else:
        opened = open_model(model, **options)
    if opened.kind != "image":
        raise BadInput(
            f"'{opened.name}' is a text model",
            "an image classifier for a trial; text models go through `seatrial.capture` and a quantizer's `plan`",
            "pass an image model",
        )
    n_outputs = opened.n_outputs
    whole = open_data(
        "digits" if data is None else data,
        class_names=opened.labels.names or None,
        wnids=opened.labels.wnids or None,
        classes_file=Path(classes) if isinstance(classes, str | Path) else None,
        n_classes=None if n_outputs is None else n_outputs - opened.labels.background,
    )
    labels = _labels(opened, whole, n_outputs)
    pipeline = opened.picture_pipeline if isinstance(opened, Model) else opened.pipeline
    good, bad = screen(
        whole,
        pipeline,
        max_bad=settings.max_bad,
        progress=None if progress is None else lambda done, total: progress(done, total, "reading the pictures"),
    )
    calibrate = calibrate and (held_out or isinstance(opened, Model))
    calibration, evaluation, note = _divided(good, settings, labels) if calibrate else (None, good, _UNCALIBRATED)
    if settings.limit is not None and settings.limit < len(evaluation):
        evaluation = limit(evaluation, settings.limit, seed=settings.seed)
    warnings = [*opened.warnings, *getattr(whole, "notes", ())]
    if bad:
        those = "is bad and was" if len(bad) == 1 else "are bad and were"
        warnings.append(f"{len(bad)} of {len(whole)} samples {those} left out, first {bad[0][0]} ({bad[0][1]})")
    probabilities = isinstance(opened, ArtefactModel) and opened.probabilities
    if isinstance(opened, ArtefactModel):
        opened = with_labels(opened, labels)
    task = Classification(labels, probabilities)
    return Subject(opened, pipeline, task, evaluation, calibration, note, tuple(bad), tuple(warnings))


def _digit_model(name: str, progress: Callable[[int, int, str], None] | None) -> Model:
    told = None if progress is None else lambda done, total: progress(done, total, f"training {name}")
    module = trained(name, progress=told)
    opened = open_model(
        module,
        input_size=(EDGE_PX, EDGE_PX),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        resize=EDGE_PX,
        crop=(EDGE_PX, EDGE_PX),
    )
    if not isinstance(opened, Model):
        raise TypeError("a module opens as a Model")
    names = tuple(str(digit) for digit in range(10))
    return replace(opened, name=name, source=name, labels=LabelMap(names, rule="the digits"), warnings=())


def _labels(opened: Model | ArtefactModel, data: Samples, n_outputs: int | None) -> LabelMap:
    if n_outputs is None:
        raise BadInput(
            f"'{opened.name}' whose output is not [batch, classes]", "an image classifier", "pass a classifier"
        )
    named = len(opened.labels.names) if opened.labels.names else len(data.class_names)
    return fit_labels(opened.labels, n_outputs, max(named, max(data.labels) + 1))


def told_apart(subjects: Sequence[Subject]) -> list[Subject]:
    """Return the subjects with different names: those of one name are called by the end of their source that differs.

    Raises BadInput for a model that is there twice.
    """
    found: list[Subject] = []
    for index, subject in enumerate(subjects):
        model = subject.model
        others = [other.model for other in subjects if other is not subject and other.model.name == model.name]
        if any((other.source, other.digest) == (model.source, model.digest) for other in others):
            raise BadInput(f"'{model.source}' twice", "each model once", "leave one out")
        if others:
            name = _ending(Path(model.source), [Path(other.source) for other in others]) or f"{model.name} {index + 1}"
            subject = replace(subject, model=replace(model, name=name))
        found.append(subject)
    return found


def _ending(path: Path, others: Sequence[Path]) -> str | None:
    """Return the shortest end of a path that no other one has, None where there is none."""
    ends = ((path.parts[-depth:], depth) for depth in range(1, len(path.parts) + 1))
    return next(("/".join(end) for end, depth in ends if all(other.parts[-depth:] != end for other in others)), None)


def _divided(good: Samples, settings: Settings, labels: LabelMap) -> tuple[Samples | None, Samples, str]:
    if settings.calibration is not None:
        pool: Samples = open_data(
            settings.calibration, class_names=labels.names or None, wnids=labels.wnids or None, n_classes=None
        )
        shared = set(pool.ids) & set(good.ids) if pool.digest == good.digest else set()
        if shared:
            raise BadInput(
                f"calibration data equal to --data ({len(shared)} samples)",
                "other samples",
                "leave --calibration out: a draw is divided off then",
            )
        drawn = min(settings.calibration_samples, len(pool))
        return limit(pool, drawn, seed=settings.seed), good, f"{drawn} samples drawn from {settings.calibration}"
    if good.name == "digits":
        pool = open_training_digits()
        drawn = min(settings.calibration_samples, len(pool))
        return limit(pool, drawn, seed=settings.seed), good, f"{drawn} samples drawn from the training digits"
    calibration, evaluation = split_calibration(good, settings.calibration_samples, seed=settings.seed)
    return calibration, evaluation, f"{len(calibration)} samples drawn from the data and left out of the evaluation"
