"""Corruptions and system noise for detectors and segmenters, judged by the figure of their task."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from seatrial.bench.cache import damage
from seatrial.bench.plan import Subject as SweptSubject
from seatrial.bench.store import Store
from seatrial.bench.worker import OpenSubjects
from seatrial.core.cell import digest, question
from seatrial.core.chance import generator
from seatrial.core.detection import Detection
from seatrial.core.instance_segmentation import InstanceSegmentation
from seatrial.core.noise import NoiseSpec
from seatrial.core.pipeline import Pipeline
from seatrial.core.segmentation import SemanticSegmentation
from seatrial.core.task import Task
from seatrial.data.detection_set import DetectionSet
from seatrial.data.draw import limit, split_calibration
from seatrial.data.mask_set import MaskSet
from seatrial.data.screen import screen
from seatrial.data.task_files import TaskName, open_task_data
from seatrial.deploy.machine import this_machine
from seatrial.errors import BadInput
from seatrial.jobs.chaining import chain_plan, missing_steps, single_noises
from seatrial.jobs.measured import Cells, blank_cell
from seatrial.jobs.noises import listed, parse_noise, profile_texts
from seatrial.jobs.planned import ask, plan_of
from seatrial.jobs.result import write_text
from seatrial.jobs.robust_cells import FAMILY_KEYS, mean_of
from seatrial.jobs.settings import Settings
from seatrial.jobs.subject import load_batches
from seatrial.jobs.variants import OpenVariants, Variant, build_for_targets
from seatrial.metrics.joining import column
from seatrial.metrics.of_task import Judged, judge_of
from seatrial.metrics.systematic import chain_rows, drops
from seatrial.models.eager_detector import OpenedDetector
from seatrial.models.opened import Model, open_model
from seatrial.numerics.batch_norm import fold_batch_norm

_KINDS: dict[type[Task], TaskName] = {
    Detection: "detection",
    InstanceSegmentation: "instance-segmentation",
    SemanticSegmentation: "semantic-segmentation",
}
Marked = DetectionSet | MaskSet
Tell = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Eager:
    """A detector that runs as it is: the one variant of itself, and what opens it in a sweep."""

    opened: OpenedDetector
    name: str = "float"
    target: str = "torch"

    @property
    def label(self) -> str:
        return f"{self.name}@{self.target}"

    @property
    def digest(self) -> str:
        return self.opened.digest

    def __call__(self) -> list[SweptSubject]:
        predictor = self.opened.predictor
        return [SweptSubject(self.name, self.target, predictor, self.digest, alter=predictor.alter)]


def task_robustness(
    model: str | Path | nn.Module | Model | OpenedDetector,
    data: str | Path | Marked,
    task: Task,
    *,
    pipeline: Pipeline | None = None,
    corruptions: str = "none",
    system: str | None = None,
    n_classes: int | None = None,
    out: str | Path | None = None,
    settings: Settings | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Tell | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return how a detector or segmenter holds under corruptions and system noise, by AP, mask AP or mean IoU.

    model: as `open_model` takes it, or opened (`open_detector` for torchvision's detectors and any callable, which
    take `pipeline` with the size they get). A captured network is deployed on the targets of `settings.target`, as
    float unless `bits` is given; an eager detector runs in PyTorch. data: as `open_task_data` takes it, with
    `n_classes`, or opened. Lists of noises as for `robustness`; `system` None is the profile `sysnoise`.

    Returns `cells` (those of `seatrial robustness`, with `difference` to clean data on the same samples), `summary`
    (for each variant the clean figure, mean and most of the drop for each system noise, the chain of the combined
    drop), `warnings`; all figures are fractions with 95 % bootstrap intervals. Writes the store and
    `robustness.json` to `out`; the same call goes on where a stopped one was. Raises BadInput with what to do, for
    deployed files, text models, tasks without such a figure, data without an object, unknown noises.
    """
    settings = replace(settings or Settings(bits="float"), **options)
    judge = judge_of(task)
    opened = model if isinstance(model, Model | OpenedDetector) else _opened(model, dict(overrides or {}))
    used = _pipeline(opened, pipeline)
    texts = [*listed(corruptions, "corruption")]
    texts += profile_texts("sysnoise", "system", gradients=False) if system is None else listed(system, "system")
    noises = tuple(parse_noise(text) for text in dict.fromkeys(texts))
    kind = _KINDS[type(task)]
    whole = open_task_data(data, kind, n_classes=n_classes) if isinstance(data, str | Path) else data
    assert isinstance(whole, DetectionSet | MaskSet)
    told = None if progress is None else lambda done, total: progress(done, total, "reading the pictures")
    good, bad = screen(whole, used, max_bad=settings.max_bad, progress=told)
    calibration, evaluation = _divided(good, kind, n_classes, settings)
    if settings.limit is not None:
        evaluation = limit(evaluation, settings.limit, seed=settings.seed)
    about = (opened.digest, evaluation.digest, repr(used), repr(task), settings.bits, settings.target)
    folder = Path(out or f"robustness-{digest(question(about=about, noises=texts))[:8]}").resolve()
    store = Store(folder / "store")
    warnings = [*opened.warnings, *whole.notes, *(f"{name} was left out: {why}" for name, why in bad)]
    variants: Sequence[Variant | _Eager]
    if isinstance(opened, Model):
        built, notes = build_for_targets(
            fold_batch_norm(opened.graph),
            lambda: load_batches(calibration, used) if calibration is not None else [],
            folder / "models" / opened.digest[:12],
            settings,
            progress,
        )
        variants, opener = built, OpenVariants(built, settings.used_threads)
        warnings += notes
    else:
        alone = _Eager(opened)
        variants, opener = (alone,), alone
    base = plan_of(opened.name, evaluation, used, task, settings)
    asked = replace(base, noises=noises)
    ask(opener, asked, store, settings, progress)
    answered = Cells.of(store, asked, variants)
    cells: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    for variant in variants:
        head = {"model": opened.name, "variant": variant.name, "target": variant.target}
        rng = generator(settings.seed, "task", variant.label)
        records = answered.records(variant.label)
        clean = None if records is None else judge(records)
        noisy = {
            spec: judge(entry.table)
            for (label, spec), entry in answered.found.items()
            if label == variant.label and spec is not None and entry.status == "done"
        }
        for spec, _ in noises:
            entry = answered.found.get((variant.label, spec))
            row = blank_cell(opened.name, variant.name, variant.target, spec, entry) | dict.fromkeys(FAMILY_KEYS)
            cells.append(row if clean is None else row | _figures(clean, noisy.get(spec), rng))
        if clean is None:
            continue
        costs = {spec: clean.less(noisy[spec]) for spec in single_noises(answered, variant.label)}
        chain = chain_plan(costs, base)
        if chain.noises:
            ask(_one_of(opener, variant), chain, store, settings, progress)
        steps = Cells.of(store, chain, [variant])
        warnings += missing_steps(steps, variant.label, chain)
        tables = {spec: steps.records(variant.label, spec) for spec, _ in chain.noises}
        links = {spec: judge(table) for spec, table in tables.items() if table is not None}
        summary.append(head | _summary(clean, costs, links, rng))
    result: dict[str, Any] = {
        "model": {"name": opened.name, "source": opened.source, "digest": opened.digest},
        "data": {"name": evaluation.name, "n": len(evaluation), "digest": evaluation.digest},
        "task": repr(task),
        "machine": asdict(this_machine(settings.used_threads)),
        "seed": settings.seed,
        "cells": cells,
        "summary": summary,
        "warnings": list(dict.fromkeys([*warnings, *damage(store.folder / "cache")])),
        "store": str(store.folder),
    }
    result = json.loads(json.dumps(result, allow_nan=False))
    write_text(folder / "robustness.json", json.dumps(result, indent=1) + "\n")
    return result


def _opened(model: str | Path | nn.Module, overrides: dict[str, Any]) -> Model:
    found = open_model(model, **overrides)
    if not isinstance(found, Model):
        raise BadInput(f"the deployed file '{found.name}'", "a network such as a .pt2", "pass the float original")
    return found


def _pipeline(opened: Model | OpenedDetector, given: Pipeline | None) -> Pipeline:
    if given is not None:
        return given
    if isinstance(opened, Model):
        return opened.picture_pipeline
    raise BadInput(
        f"no pipeline for '{opened.name}', which takes pictures of any size",
        "the size that it gets in service",
        "pass for example pipeline=Pipeline((640, 640), Resize(), letterbox=Letterbox())",
    )


def _divided(good: Marked, kind: str, n_classes: int | None, settings: Settings) -> tuple[Marked | None, Marked]:
    """Return calibration samples, where there is something to calibrate, and those that are judged."""
    if settings.bits == "float":
        return None, good
    if settings.calibration is None:
        return split_calibration(good, settings.calibration_samples, seed=settings.seed)
    pool = open_task_data(settings.calibration, kind, n_classes=n_classes)
    assert isinstance(pool, DetectionSet | MaskSet)
    return limit(pool, settings.calibration_samples, seed=settings.seed), good


def _one_of(opener: OpenSubjects, variant: Variant | _Eager) -> OpenSubjects:
    return replace(opener, variants=(variant,)) if isinstance(opener, OpenVariants) else opener


def _figures(clean: Judged, noisy: Judged | None, rng: np.random.Generator) -> dict[str, Any]:
    """Return what a cell says of its records (None: it has none) against those of clean data."""
    row: dict[str, Any] = {"metric": clean.metric, "clean": clean.value()}
    if noisy is None:
        return row
    interval, moved = noisy.interval(rng), noisy.less_interval(clean, rng)
    row |= {"n": len(noisy.records), "value": noisy.value(), "low": interval.low, "high": interval.high}
    row |= {"difference": noisy.less(clean), "difference_low": moved.low, "difference_high": moved.high}
    if "picture_difference" in noisy.records.column_names:
        row["picture_difference"] = mean_of(column(noisy.records, "picture_difference").astype(np.float64), rng)
    return row


def _summary(
    clean: Judged, costs: Mapping[NoiseSpec, float], chain: Mapping[NoiseSpec, Judged], rng: np.random.Generator
) -> dict[str, Any]:
    links = chain_rows((spec, judged.value(), clean.less(judged)) for spec, judged in chain.items())
    last = list(chain.values())[-1] if chain else None
    return {
        "metric": clean.metric,
        "clean": clean.value(),
        "intervals": {
            "clean": asdict(clean.interval(rng)),
            "combined_drop": None if last is None else asdict(clean.less_interval(last, rng)),
        },
        "system": [one.row() for one in drops(costs)],
        "combined_drop": links[-1]["drop"] if links else None,
        "chain": links,
    }
