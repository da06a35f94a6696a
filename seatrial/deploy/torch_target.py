"""PyTorch itself as a target: the simulation of every variant, and what a GPU runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from seatrial.core.graph import Graph, GraphPredictor, from_program
from seatrial.core.in_place import overwriting
from seatrial.core.placement import PlacementRules
from seatrial.core.predictor import Gift, Inputs, Predictor
from seatrial.core.target import Artefact, Target, Timing
from seatrial.deploy.anonymous import anonymous_program
from seatrial.deploy.machine import executes_bf16
from seatrial.deploy.stopwatch import Stopwatch, Subject
from seatrial.errors import BadInput, NotApplicable
from seatrial.models.program import open_program
from seatrial.numerics.layout import lay_out


def _rules() -> PlacementRules:
    return PlacementRules("torch", "by-range", operator_outputs=False)


@dataclass(frozen=True, eq=False)
class TorchPredictor(Predictor):
    """A saved program run by PyTorch with its own number of threads; differentiable."""

    inner: GraphPredictor
    threads: int

    @property
    def gives(self) -> frozenset[Gift]:
        return self.inner.gives

    def __call__(self, inputs: Inputs) -> Tensor:
        with torch_threads(self.threads):
            return self.inner(inputs)


@dataclass(frozen=True)
class Torch(Target):
    """PyTorch on `device` (`cpu`, `cuda`); writes and opens `.pt2`. Integer grids are simulated in float32."""

    device: str = "cpu"
    placement: PlacementRules = field(default_factory=_rules)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    name: str = "torch"

    def __post_init__(self) -> None:
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise BadInput(f"device '{self.device}'", "a GPU that torch sees", "use device 'cpu'")

    @staticmethod
    def installed() -> bool:
        """Return True: torch is a base dependency."""
        return True

    @property
    def precisions(self) -> tuple[str, ...]:
        native = torch.cuda.is_bf16_supported() if self.device.startswith("cuda") else executes_bf16()
        return ("float32", "bf16") if native else ("float32",)

    def compile(self, graph: Graph, path: Path, *, bits: str) -> Artefact:
        if bits == "bf16" and "bf16" not in self.precisions:
            raise NotApplicable(f"{self.device} does not execute bf16 on this machine")
        file = path.with_name(path.name + ".pt2")
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.export.save(anonymous_program(graph), file)
        arithmetic = bits if bits in ("bf16", "fp16") else "as-is"
        settings = {"device": self.device, "arithmetic": arithmetic, "inputs": _names(graph)}
        return Artefact(file, "pt2", bits, settings)

    def open(self, artefact: Artefact, *, threads: int) -> Predictor:
        return TorchPredictor(open_predictor(artefact), threads)

    def time(self, artefacts: Sequence[Artefact], *, threads: int, batches: Sequence[int] = (1, 8)) -> list[Timing]:
        subjects = [Subject(self.name, artefact) for artefact in artefacts]
        return self.stopwatch.measure(subjects, threads=threads, batches=batches)


def open_graph(artefact: Artefact) -> tuple[Graph, str, str]:
    """Return the graph of a `.pt2`, on its device, with device and arithmetic.

    On a CPU the weights of convolutions are laid out channels last. Raises BadInput for another format.
    """
    if artefact.format != "pt2":
        raise BadInput(f"a .{artefact.format} file for torch", ".pt2", "open it on another target")
    names = artefact.settings.get("inputs", "").split(",")
    graph = from_program(open_program(artefact.path), names=names if names != [""] else None)
    device = artefact.settings.get("device", "cpu")
    graph.module.to(device)
    if device == "cpu":
        lay_out(graph.module, torch.channels_last)
    return graph, device, artefact.settings.get("arithmetic", "as-is")


def open_predictor(artefact: Artefact) -> GraphPredictor:
    """Return what answers for a `.pt2`: its graph as `open_graph` gives it, with ReLUs in place."""
    graph, device, arithmetic = open_graph(artefact)
    return GraphPredictor(overwriting(graph), device, arithmetic)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Give torch `threads` threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _names(graph: Graph) -> str:
    return ",".join(spec.name for spec in graph.inputs)
