"""Where a model runs, and how its time is told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.predictor import Predictor


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call: median, 10th and 90th percentile over `runs` calls at one batch size."""

    median: float
    p10: float
    p90: float
    runs: int
    batch: int
    threads: int


@dataclass(frozen=True)
class Timing:
    """What a stopwatch saw of one deployed model."""

    latency: tuple[Latency, ...]
    """One entry for each batch size that was asked for."""
    throughput_per_s: float
    """Pictures per second at the largest batch size."""
    load_ms: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Machine:
    """The machine a figure was measured on."""

    cpu: str
    cores: int
    threads: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    system: str
    gpus: tuple[str, ...]
    libraries: Mapping[str, str]


@dataclass(frozen=True)
class Artefact:
    """A model as files that a runtime loads: `path` is the main file, `bits` what it holds (`float32`, `bf16`, `w8a8`).

    `settings` are the runtime's own options, such as the precision hint.
    """

    path: Path
    format: str  # onnx, tflite, pt2
    bits: str
    settings: Mapping[str, str]

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the runtime loads: the main one and ONNX external data beside it."""
        beside = self.path.with_name(self.path.name + ".data")
        return (self.path, beside) if beside.exists() else (self.path,)

    @property
    def size_bytes(self) -> int:
        """The sum of the files that the runtime loads."""
        return sum(file.stat().st_size for file in self.files)


class Target(ABC):
    """A runtime on a chip. Law: `open(compile(graph))` answers as `simulated(graph)` does."""

    name: str
    placement: PlacementRules

    @property
    @abstractmethod
    def precisions(self) -> tuple[str, ...]:
        """Float types that this target truly executes on this machine besides integers: `float32`, `bf16`."""

    @abstractmethod
    def compile(self, graph: Graph, path: Path, *, bits: str) -> Artefact:
        """Write the graph as files under `path` (without suffix) and return the artefact."""

    def simulated(self, graph: Graph) -> Graph:
        """Return a graph that computes in PyTorch, differentiably, what this runtime computes for `graph`.

        Here the graph itself; a target whose integer kernels scale and round in another order says which.
        """
        return graph

    @abstractmethod
    def open(self, artefact: Artefact, *, threads: int) -> Predictor:
        """Return a predictor for an artefact; raises BadInput for a format that the target cannot open."""

    @abstractmethod
    def time(self, artefacts: Sequence[Artefact], *, threads: int, batches: Sequence[int] = (1, 8)) -> list[Timing]:
        """Measure artefacts in alternation, each in a process of its own, after warming up."""
