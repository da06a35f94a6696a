"""What a sweep asks and of whom, as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import final

from seatrial.core.noise import Attack, Corruption, NoiseSpec, System, SystemNoise
from seatrial.core.pipeline import Pipeline
from seatrial.core.predictor import Predictor
from seatrial.core.sample import Dataset
from seatrial.core.task import Task
from seatrial.errors import BadInput

Noise = Corruption | Attack | SystemNoise


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """One variant on one target.

    `digest` stands for all that its answers depend on: weights, recipe, runtime and its settings. `surrogate` gives
    gradients to attacks: the predictor itself where that is a graph (white-box), the simulated graph of a deployed
    predictor (transfer), or None. `parent` is the float network that a quantized one was made from, for attacks that
    are found there and judged here. `alter` returns the predictor in another system (arithmetic, operators) and may
    raise NotApplicable or NoNoise; None where the target has one only.
    """

    name: str
    target: str
    predictor: Predictor
    digest: str
    surrogate: Predictor | None = None
    alter: Callable[[System], Predictor] | None = None
    parent: Predictor | None = None

    def close(self) -> None:
        """Free the predictor, the surrogate and the parent."""
        for predictor in {id(p): p for p in (self.predictor, self.surrogate, self.parent) if p is not None}.values():
            predictor.close()


@final
@dataclass(frozen=True)
class Group:
    """One noise (None: clean data) for all subjects: the unit of work that a process claims."""

    spec: NoiseSpec | None
    noise: Noise | None

    def __str__(self) -> str:
        if self.spec is None:
            return "clean"
        parts = (self.spec.name, self.spec.option, self.spec.norm, self.spec.severity)
        return ":".join(str(part) for part in parts if part is not None)


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """The questions of a sweep; it travels to worker processes, so all parts can be pickled.

    `noises` pairs each row of the report with what makes the noise (the catalogue knows); clean data come first by
    themselves. `libraries` maps libraries whose version matters to their versions. `cache_gb` bounds the loaded
    pictures kept beside the store (0: none) and is no part of the question.
    """

    model: str
    dataset: Dataset
    pipeline: Pipeline
    task: Task
    noises: tuple[tuple[NoiseSpec, Callable[[], Noise]], ...] = ()
    seed: int = 0
    batch: int = 64
    threads: int = 2
    libraries: Mapping[str, str] = field(default_factory=dict)
    cache_gb: float = 0.0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.threads < 1:
            raise BadInput(
                f"batch {self.batch} and {self.threads} threads", "at least 1 of each", "give larger numbers"
            )
        if not len(self.dataset):
            raise BadInput(f"no samples in '{self.dataset.name}'", "at least one", "check --data and --limit")

    @property
    def groups(self) -> tuple[Group, ...]:
        """Clean data, then each noise in order."""
        return (Group(None, None), *(Group(spec, maker()) for spec, maker in self.noises))

    @property
    def batches(self) -> tuple[tuple[int, ...], ...]:
        """Indices of samples in order of id, cut into batches of one size (the last may be smaller)."""
        order = sorted(range(len(self.dataset)), key=self.dataset.ids.__getitem__)
        return tuple(tuple(order[start : start + self.batch]) for start in range(0, len(order), self.batch))
