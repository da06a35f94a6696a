"""Train a network further so that it holds under noise, or let it adapt at test time, and see what that gives."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from seatrial.bench.plan import Subject as SweptSubject
from seatrial.catalogue import find, make
from seatrial.core.graph import Graph, GraphPredictor
from seatrial.core.noise import Attack
from seatrial.core.target import Artefact, Target
from seatrial.deploy.machine import this_machine
from seatrial.deploy.torch_target import open_graph, torch_threads
from seatrial.jobs.measured import Metric
from seatrial.jobs.result import write_text
from seatrial.jobs.settings import Settings
from seatrial.jobs.trainee import AUGMENTS, Lesson, Trainee, judged, named, open_trainee, write_weights
from seatrial.jobs.variants import SIMULATION, OpenVariants, Variant
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.train.adversarial import Adversarial
from seatrial.train.loop import Training
from seatrial.train.mix_training import MixTraining, pictures, variants
from seatrial.train.objective import Objective
from seatrial.train.tent import Tent
from seatrial.train.trainable import trainable, trained

_STEPS, _RELATIVE_STEP = 7, 1 / 4
"""Madry et al. 2018, section 5, CIFAR10: 7 steps of 2/255 in a ball of 8/255."""


@dataclass(frozen=True)
class PgdOf:
    """Attacks a captured graph while it trains: PGD in L-infinity with a random start."""

    inputs: tuple[Any, ...]
    epsilon: str

    def __call__(self, module: nn.Module, inputs: Tensor, labels: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the attacked pictures."""
        assert isinstance(module, fx.GraphModule)
        attack: Attack = make(
            "attack", "pgd", epsilon=self.epsilon, norm="linf", steps=_STEPS, relative_step=_RELATIVE_STEP
        )
        keys = rng.integers(0, 2**63, (len(inputs), 2), dtype=np.uint64)
        chance = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        return attack.perturb(GraphPredictor(Graph(module, self.inputs)), inputs, labels, rng=chance).inputs


@dataclass(frozen=True)
class _OpenAdapting:
    """Opens the float variant as it is and the other as a network that adapts to each batch."""

    variants: tuple[Variant, ...]
    threads: int
    tent: Tent

    def __call__(self) -> list[SweptSubject]:
        plain = OpenVariants(self.variants[:1], self.threads)()
        variant = self.variants[1]
        predictor = self.tent.adapting(open_graph(variant.artefact)[0])
        # Attacks are found on the network before it adapts: through the adaptation there is no gradient.
        return [
            *plain,
            SweptSubject(variant.name, variant.target, predictor, variant.digest, plain[0].surrogate, None),
        ]


def harden(
    model: str | Path | nn.Module,
    data: str | Path | Iterable[Any] | None = None,
    *,
    by: str,
    epsilon: str = "8/255",
    lesson: Lesson | None = None,
    train: str | Path | Iterable[Any] | None = None,
    train_limit: int | None = None,
    out: str | Path = "hardened",
    metric: Metric | None = None,
    settings: Settings | None = None,
    overrides: dict[str, Any] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    mitigation: Objective | Tent | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Harden a float network by `mix`, `augmix`, `adversarial` or `tent`, and judge it before and after.

    The first three train it further and write `.pt2`, weights and a checkpoint under `out`; TENT trains nothing and
    adapts to each batch of `settings.batch` pictures anew. `epsilon` is the budget of adversarial training in
    L-infinity; `mitigation` takes the place of the method that `by` names, for options of its own. Both networks are
    judged on clean data and under `settings.noise`. The same call goes on where a killed one was. Returns the JSON of
    `seatrial harden`. Raises BadInput for deployed files, unknown names and data that cannot be used.
    """
    start = time.monotonic()
    settings = replace(settings or Settings(noise="none"), **options)
    lesson = lesson or Lesson()
    find("mitigation", by)
    trainee = open_trainee(
        model, data, settings, train=train, train_limit=train_limit, overrides=overrides, progress=progress
    )
    method = mitigation or _method(by, trainee, epsilon, lesson)
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    warnings = [*trainee.subject.warnings]
    files: list[Path] = []
    simulation: Target = make("target", SIMULATION)
    whole = simulation.compile(fold_batch_norm(trainee.graph), folder / "models" / "float-torch", bits="float32")
    before = Variant("float", SIMULATION, whole, whole)
    checkpoint: Path | None = None
    if isinstance(method, Tent):
        unfolded = simulation.compile(trainee.graph, folder / "models" / "unfolded-torch", bits="float32")
        after = Variant(by, SIMULATION, _noted(unfolded, repr(method)), whole)
        opener: Callable[[], list[SweptSubject]] = _OpenAdapting((before, after), settings.used_threads, method)
    else:
        warnings.append(trainee.note)
        checkpoint = trainee.checkpoint(folder, lesson.training, by, repr(method), lesson, settings.seed)
        graph, notes = _hardened(trainee, method, lesson, settings, checkpoint, named(progress, f"training by {by}"))
        warnings += notes
        artefact = simulation.compile(fold_batch_norm(graph), folder / "models" / f"{by}-torch", bits="float32")
        after = Variant(by, SIMULATION, artefact, artefact)
        opener = OpenVariants((before, after), settings.used_threads)
        files = [*artefact.files, write_weights(graph, folder / "weights.safetensors")]
    rows = judged(trainee.subject, (before, after), opener, folder, settings, metric, progress)
    model_of = trainee.subject.model
    result = {
        "model": {"name": model_of.name, "source": model_of.source, "digest": model_of.digest},
        "machine": asdict(this_machine(settings.used_threads)),
        "by": by,
        "method": repr(method),
        "training": None
        if checkpoint is None
        else {**asdict(lesson), "samples": len(trainee.samples), "seed": settings.seed},
        "n": len(trainee.subject.evaluation),
        "variants": list(rows.values()),
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "files": [str(file) for file in files],
        "seconds": time.monotonic() - start,
        "warnings": warnings,
    }
    write_text(folder / "harden.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return json.loads(json.dumps(result))


def _method(by: str, trainee: Trainee, epsilon: str, lesson: Lesson) -> Objective | Tent:
    """Return the mitigation with the job's options."""
    if by == "tent":
        return make("mitigation", by)
    augment = AUGMENTS[lesson.augment]
    if by == "adversarial":
        make("attack", "pgd", epsilon=epsilon)  # refuses a bad budget now
        return Adversarial(attack=PgdOf(trainee.graph.inputs, epsilon), augment=augment)
    return make("mitigation", by, augment=augment)


def _hardened(
    trainee: Trainee,
    method: Objective,
    lesson: Lesson,
    settings: Settings,
    checkpoint: Path,
    progress: Callable[[int, int], None] | None,
) -> tuple[Graph, list[str]]:
    pipeline, workers, notes = trainee.subject.pipeline, settings.used_threads, list[str]()
    if isinstance(method, MixTraining):
        shown, kept = variants(method.pipelines(pipeline), trainee.samples, workers=workers)
        drawn = sorted({one.decoder if one.resize is None else f"{one.decoder} and {_resize(one)}" for one in kept})
        notes.append(f"pictures are drawn from {len(kept)} pipelines: {', '.join(drawn)}")
    else:
        shown = pictures(pipeline, trainee.samples, workers=workers)
    module = trainable(trainee.graph, norms=lesson.norms)
    training: Training = lesson.training
    with torch_threads(settings.used_threads):
        training.fit(
            module, shown, trainee.labels, method, seed=settings.seed, checkpoint=checkpoint, progress=progress
        )
    return trained(trainee.graph, module), notes


def _resize(pipeline: Any) -> str:
    return f"{pipeline.resize.library}-{pipeline.resize.interpolation}"


def _noted(artefact: Artefact, text: str) -> Artefact:
    """Return an artefact whose settings, and so its digest, name what adapts it."""
    return replace(artefact, settings={**artefact.settings, "adapted": text})
