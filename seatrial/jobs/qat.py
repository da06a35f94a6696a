"""Train a network with its rounds in place, and write what runs on a target."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from seatrial.catalogue import make
from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits
from seatrial.core.realise import realise
from seatrial.core.recipe import Recipe
from seatrial.core.target import Target
from seatrial.deploy.machine import this_machine
from seatrial.deploy.torch_target import torch_threads
from seatrial.errors import unknown_name
from seatrial.jobs.deployable import write_deployable
from seatrial.jobs.measured import Metric
from seatrial.jobs.result import write_text
from seatrial.jobs.settings import Settings
from seatrial.jobs.trainee import AUGMENTS, Lesson, Trainee, judged, named, open_trainee
from seatrial.jobs.variants import SIMULATION, OpenVariants, Variant, usable_target
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.quant.qat import WEIGHTED_ONLY, Ends, QatMethod, placed, prepare
from seatrial.train.mix_training import pictures
from seatrial.train.shift_flip import unit


def qat(
    model: str | Path | nn.Module,
    data: str | Path | Iterable[Any] | None = None,
    *,
    method: str | QatMethod = "lsq",
    bits: str = "w4a4",
    ends: Ends = "8",
    placement: Literal["auto", "target", "weighted"] = "auto",
    lesson: Lesson | None = None,
    train: str | Path | Iterable[Any] | None = None,
    train_limit: int | None = None,
    out: str | Path = "qat",
    metric: Metric | None = None,
    settings: Settings | None = None,
    overrides: dict[str, Any] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train a float network for `bits` and write model, recipe, checkpoint, labels and script under `out`.

    `placement` says where rounds stand: `target`, where the target's integer kernels want them; `weighted`, on weights
    and on what weighted operators read; `auto` takes the first for 8 bits, the second for fewer, which no integer
    kernel gains from. The target is ONNX Runtime unless `settings.target` names another. The same call goes on where a
    killed one was. All variants are judged on clean data and under `settings.noise`. Returns the JSON of `seatrial
    qat`. Raises BadInput for deployed files, unknown names and data that cannot be used.
    """
    start = time.monotonic()
    settings = replace(settings or Settings(target="onnxruntime", noise="none"), **options)
    name = "onnxruntime" if settings.target == "auto" else settings.target
    target, wanted, lesson = usable_target(name), Bits.parse(bits), lesson or Lesson()
    learner: QatMethod = make("qat", method) if isinstance(method, str) else method
    if placement not in ("auto", "target", "weighted"):
        raise unknown_name("placement", placement, ("auto", "target", "weighted"))
    whole = min(wanted.weights, wanted.activations) >= 8
    rules = target.placement if placement == "target" or (placement == "auto" and whole) else WEIGHTED_ONLY
    trainee = open_trainee(
        model, data, settings, train=train, train_limit=train_limit, overrides=overrides, progress=progress
    )
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    question = (repr(learner), bits, ends, rules, lesson, settings.keep, settings.seed)
    checkpoint = trainee.checkpoint(folder, lesson.training, *question)
    float_graph, recipe = _learned(
        trainee, learner, wanted, ends, rules, lesson, settings, checkpoint, named(progress, "training")
    )
    variants = _variants(fold_batch_norm(trainee.graph), realise(float_graph, recipe), target, folder, str(wanted))
    recipe.save(folder / "models" / f"recipe-{wanted}-{name}")
    opener = OpenVariants(tuple(variants), settings.used_threads)
    rows = judged(trainee.subject, variants, opener, folder, settings, metric, progress)
    before, after = rows["float", SIMULATION], rows[str(wanted), name]
    files = list(variants[-1].artefact.files)
    if name != SIMULATION:
        files = write_deployable(folder, variants[-1].artefact, name, trainee.subject)
    files += [file for file in variants[1].artefact.files if file not in files]
    subject = trainee.subject
    result = {
        "model": {"name": subject.model.name, "source": subject.model.source, "digest": subject.model.digest},
        "machine": asdict(this_machine(settings.used_threads)),
        "target": name,
        "method": method if isinstance(method, str) else type(method).__name__.lower(),
        "ends": ends,
        "placement": "weighted" if rules is WEIGHTED_ONLY else "target",
        "training": {**asdict(lesson), "samples": len(trainee.samples), "seed": settings.seed},
        **{key: after[key] for key in ("bits", "size_bytes", "latency_ms", "metric", "value")},
        "float_value": before["value"],
        "simulated_value": rows[str(wanted), SIMULATION]["value"],
        **{key: after[key] for key in ("agreement", "agreement_simulated")},
        "n": len(subject.evaluation),
        "variants": list(rows.values()),
        "checkpoint": str(checkpoint),
        "files": [str(file) for file in files],
        "seconds": time.monotonic() - start,
        "warnings": [*subject.warnings, trainee.note, *recipe.notes],
    }
    write_text(folder / "qat.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return json.loads(json.dumps(result))


def _learned(
    trainee: Trainee,
    method: QatMethod,
    bits: Bits,
    ends: Ends,
    rules: PlacementRules,
    lesson: Lesson,
    settings: Settings,
    checkpoint: Path,
    progress: Callable[[int, int], None] | None,
) -> tuple[Graph, Recipe]:
    shown = pictures(trainee.subject.pipeline, trainee.samples, workers=settings.used_threads)
    precision = placed(trainee.graph, rules, bits, ends=ends, keep=settings.keep)
    calibration = [unit(part) for part in shown[: settings.calibration_samples].split(settings.batch)]
    prepared = prepare(method, trainee.graph, calibration, precision, norms=lesson.norms)

    def loss(module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(module(inputs), labels) + method.penalty(module)

    moved = AUGMENTS[lesson.augment]
    with torch_threads(settings.used_threads):
        lesson.training.fit(
            prepared.module,
            shown,
            trainee.labels,
            loss,
            seed=settings.seed,
            checkpoint=checkpoint,
            augment=moved or (lambda batch, rng: unit(batch)),
            progress=progress,
        )
    return prepared.converted()


def _variants(graph: Graph, rounded: Graph, target: Target, folder: Path, bits: str) -> list[Variant]:
    """Write the float graph, the simulation and, last, the file of the target."""
    simulation: Target = make("target", SIMULATION)
    models = folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    whole = simulation.compile(graph, models / "float-torch", bits="float32")
    seen = simulation.compile(target.simulated(rounded), models / f"{bits}-{target.name}-torch", bits=bits)
    variants = [Variant("float", SIMULATION, whole, whole), Variant(bits, SIMULATION, seen, seen, whole)]
    if target.name != SIMULATION:
        deployed = target.compile(rounded, models / f"{bits}-{target.name}", bits=bits)
        variants.append(Variant(bits, target.name, deployed, seen, whole))
    return variants
