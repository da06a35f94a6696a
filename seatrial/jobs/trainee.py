"""A network with the data it learns from and the data it is judged on, which share no sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from seatrial.bench.plan import Subject as SweptSubject
from seatrial.bench.store import Store
from seatrial.core.cell import digest
from seatrial.core.graph import Graph
from seatrial.core.sample import Sample
from seatrial.data.draw import limit, ranked
from seatrial.data.files import open_data, open_training_digits
from seatrial.data.screen import screen
from seatrial.errors import BadInput, unknown_name
from seatrial.jobs.measured import Cells, Metric, variant_data
from seatrial.jobs.planned import ask, plans
from seatrial.jobs.settings import Progress, Settings
from seatrial.jobs.subject import Samples, Subject, open_subject
from seatrial.jobs.variants import SIMULATION, Variant, time_variants
from seatrial.models.opened import Model
from seatrial.train.loop import Training
from seatrial.train.shift_flip import ShiftFlip
from seatrial.train.trainable import Norms, eager_state

_HELD_OUT = 5
"""One sample in so many is judged on where no training data is named."""


AUGMENTS: dict[str, ShiftFlip | None] = {"none": None, "shift": ShiftFlip(flip=False), "shift-flip": ShiftFlip()}


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How a network is trained: SGD with Nesterov momentum, one cycle, norms and biases not decayed.

    `rate` is the peak learning rate; `augment` is `none`, `shift` (by an eighth, black behind) or `shift-flip`;
    `norms` says whether batch norms keep learning statistics. Raises BadInput for options out of range.
    """

    epochs: int = 10
    rate: float = 0.01
    weight_decay: float = 1e-4
    batch: int = 64
    augment: str = "shift"
    norms: Norms = "live"

    def __post_init__(self) -> None:
        if self.augment not in AUGMENTS:
            raise unknown_name("augmentation", self.augment, AUGMENTS)
        if self.norms not in ("live", "frozen"):
            raise unknown_name("choice for norms", self.norms, ("live", "frozen"))
        _ = self.training

    @property
    def training(self) -> Training:
        """The loop's settings."""
        return Training(
            self.epochs, self.batch, self.rate, self.weight_decay, optimizer="sgd", warm_up=0.1, decayed="matrices"
        )


@dataclass(frozen=True, eq=False)
class Trainee:
    """A subject whose `samples` are trained on and whose evaluation samples are judged on."""

    subject: Subject
    samples: Samples
    note: str

    @property
    def graph(self) -> Graph:
        """The captured graph, its batch norms unfolded."""
        assert isinstance(self.subject.model, Model)
        return self.subject.model.graph

    @property
    def outputs(self) -> int:
        """How many outputs the network has for a sample."""
        assert isinstance(self.subject.model, Model)
        return self.subject.model.n_outputs or 0

    @property
    def labels(self) -> Tensor:
        """The outputs [n] that the samples should get, background counted."""
        background = self.subject.task.labels.background
        return torch.tensor(list(self.samples.labels), dtype=torch.int64) + background

    def checkpoint(self, folder: Path, training: Training, *more: object) -> Path:
        """Return the file of a training's state: another question has another file."""
        model = self.subject.model
        key = digest(model.digest, self.samples.digest, repr(self.subject.pipeline), repr(training), repr(more))
        return folder / f"training-{key[:12]}.ckpt"


def open_trainee(
    model: str | Path | nn.Module,
    data: str | Path | Iterable[Any] | None,
    settings: Settings,
    *,
    train: str | Path | Iterable[Any] | None = None,
    train_limit: int | None = None,
    overrides: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Trainee:
    """Open a network to train, `data` to judge it on and `train` to train it on.

    Without `train`, a fifth of `data`, drawn by the seed, is judged on and the rest trained on; for the built-in
    digits their training part is taken. `train_limit` bounds the samples trained on. Raises BadInput for deployed
    files and where all training samples are among those judged on; some that are, are left out and counted.
    """
    whole = replace(settings, limit=None)
    subject = open_subject(model, data, whole, overrides=overrides, calibrate=False, progress=progress)
    if not isinstance(subject.model, Model):
        raise BadInput(f"the deployed file '{subject.model.name}'", "a network to train", "pass the float original")
    evaluation, names = subject.evaluation, subject.task.labels
    if train is not None:
        pool = open_data(
            train,
            class_names=names.names or None,
            wnids=names.wnids or None,
            n_classes=(subject.model.n_outputs or 0) - names.background or None,
        )
        samples, note = _apart(_screened(pool, subject, settings, progress), evaluation)
    elif evaluation.name == "digits":
        samples, note = _screened(open_training_digits(), subject, settings, progress), "trained on the training digits"
    else:
        order = ranked(evaluation.ids, settings.seed, "held out")
        held = len(order) // _HELD_OUT
        if not held:
            raise BadInput(f"{len(order)} samples", f"at least {_HELD_OUT}", "pass more --data")
        samples, evaluation = evaluation.subset(order[held:]), evaluation.subset(order[:held])
        note = f"{len(evaluation)} samples drawn from the data are judged on, and trained on are {len(samples)} others"
    if settings.limit is not None:
        evaluation = limit(evaluation, settings.limit, seed=settings.seed)
    if train_limit is not None:
        samples = limit(samples, train_limit, seed=settings.seed)
    return Trainee(replace(subject, evaluation=evaluation), samples, note)


def _screened(pool: Samples, subject: Subject, settings: Settings, progress: Progress | None) -> Samples:
    told = named(progress, "reading the training pictures")
    return screen(pool, subject.pipeline, max_bad=settings.max_bad, progress=told)[0]


def _apart(samples: Samples, evaluation: Samples) -> tuple[Samples, str]:
    """Return the training samples whose contents are not judged on, and a note."""
    judged_on = {_content(sample) for sample in evaluation}
    shared = [sample.id for sample in samples if _content(sample) in judged_on]
    if len(shared) == len(samples):
        raise BadInput("training data equal to --data", "other samples", "leave --train out: --data is divided then")
    left_out = f"; {len(shared)} of its samples are judged on and were left out" if shared else ""
    return samples.without(shared), f"trained on {samples.name}{left_out}"


def _content(sample: Sample) -> str:
    if sample.encoded is not None:
        return digest(sample.encoded)
    return digest(b"" if sample.array is None else sample.array.tobytes())


def named(progress: Progress | None, text: str) -> Callable[[int, int], None] | None:
    """Return what tells (done, total) of one piece of work, None where nobody listens."""
    return None if progress is None else lambda done, total: progress(done, total, text)


def write_weights(graph: Graph, file: Path) -> Path:
    """Write parameters and statistics under the names of the eager network, as `--weights` takes them."""
    state = eager_state(graph)
    save_file({name: value.contiguous().clone() for name, value in state.items()}, file)
    return file


def judged(
    subject: Subject,
    variants: Sequence[Variant],
    opener: Callable[[], list[SweptSubject]],
    folder: Path,
    settings: Settings,
    metric: Metric | None,
    progress: Progress | None,
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return each variant's entry as a trial gives it, by name and target: clean data, noises, and latency."""
    clean_plan, noise_plan = plans(subject, settings, True)
    store = Store(folder / "store")
    for plan in dict.fromkeys((clean_plan, noise_plan)):
        ask(opener, plan, store, settings, progress)
    clean, noisy = Cells.of(store, clean_plan, variants), Cells.of(store, noise_plan, variants)
    specs = [group.spec for group in noise_plan.groups if group.spec is not None]
    timings = time_variants(variants, settings.used_threads)
    reference = clean.records(f"float@{SIMULATION}")
    name = subject.model.name
    return {
        (v.name, v.target): variant_data(v, name, clean, noisy, specs, timings.get(v.label), metric, reference)
        for v in variants
    }
