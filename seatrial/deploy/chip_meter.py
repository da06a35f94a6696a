"""The chip as a meter: recipes become files, and each is timed against one reference."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from seatrial.core.cell import digest, question
from seatrial.core.graph import Graph
from seatrial.core.realise import realise
from seatrial.core.recipe import Affine, FloatType, Recipe, Round
from seatrial.core.search import CannotRun, Reading
from seatrial.core.sites import op_name, signature
from seatrial.core.target import Artefact, Target
from seatrial.deploy.duel import Bout, Duel
from seatrial.deploy.energy import EnergyCounter
from seatrial.deploy.machine import this_machine
from seatrial.deploy.onnx_template import OnnxTemplate
from seatrial.deploy.onnxruntime import OnnxRuntime
from seatrial.deploy.openvino import OpenVino
from seatrial.deploy.stopwatch import Subject, WorkerDied


@dataclass(eq=False)
class ChipMeter:
    """Times recipes of one graph on a CPU runtime; `reference` is what all are held against, `every` holds a round at
    each site that a recipe may have, so that the graph is exported once.

    Use it as a context: two processes of the runtime live as long as it does. With `memory`, a file of JSON lines,
    readings are kept there and never measured twice for one graph's shapes, target, threads, batch, machine and library
    versions.
    """

    target: Target
    graph: Graph
    every: Recipe
    reference: Recipe
    threads: int
    batch: int = 1
    rounds: int = 8
    memory: Path | None = None
    told: Callable[[Reading], None] | None = None
    energy: EnergyCounter | None = None
    _known: dict[str, Reading] = field(default_factory=dict, repr=False)

    def __enter__(self) -> ChipMeter:
        self._folder = tempfile.TemporaryDirectory()
        self._place = digest(
            question(
                graph=list(signature(self._without_rounds())),
                shapes=[str(getattr(node.meta.get("val"), "shape", "")) for node in self.graph.nodes()],
                target=repr(self.target),
                threads=self.threads,
                batch=self.batch,
                machine={k: v for k, v in asdict(this_machine(self.threads)).items() if k != "memory_bytes"},
                reference=_kinds(self.reference),
            )
        )
        self._read_memory()
        self._template = self._exported()
        self._count = 0
        self._duel: Duel | None = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._duel is not None:
            self._duel.__exit__(kind, value, trace)
        self._folder.cleanup()

    def time(self, recipes: Sequence[Recipe], *, rounds: int | None = None) -> list[Reading]:
        """Return one reading a recipe; raises CannotRun where the runtime cannot run one."""
        return [self._reading(recipe, rounds or self.rounds) for recipe in recipes]

    def artefact(self, recipe: Recipe, name: str) -> Artefact:
        """Write the file of a recipe into the meter's own folder."""
        path = Path(self._folder.name) / name
        if self._template is None or not isinstance(self.target, OpenVino | OnnxRuntime):
            return self.target.compile(realise(self.graph, recipe), path, bits="mixed")
        mixed = isinstance(self.target, OnnxRuntime)
        exported = self._template.write(recipe.rounds, path.with_name(path.name + ".onnx"), for_onnxruntime=mixed)
        return self.target.artefact(exported, "mixed")

    def _reading(self, recipe: Recipe, rounds: int) -> Reading:
        key = digest(self._place, _kinds(recipe))
        known = self._known.get(key)
        if known is not None and known.rounds >= rounds:
            return known
        if self._duel is None:
            start = self.artefact(self.reference, "reference")
            duel = Duel(Subject(self.target.name, start), self.threads, self.batch, self.rounds, energy=self.energy)
            self._duel = duel.__enter__()
        self._count += 1
        artefact = self.artefact(recipe, f"recipe{self._count}")
        fresh = rounds - (known.rounds if known is not None else 0)
        try:
            new = reading_of(self._duel.bout(artefact, rounds=max(fresh, 4)), artefact.size_bytes)
        except WorkerDied as error:
            self._duel.__exit__(None, None, None)
            self._duel = None  # a process may be gone: the next reading starts two new ones
            raise CannotRun(f"{error}") from error
        for file in artefact.files:
            file.unlink()
        if known is not None:
            new = merged(known, new)
        self._known[key] = new
        if self.memory is not None:
            with self.memory.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, **asdict(new)}) + "\n")
        if self.told is not None:
            self.told(new)
        return new

    def _without_rounds(self) -> Graph:
        """Return the graph that is timed: migrations may add operators to it."""
        edits = tuple(edit for edit in self.reference.edits if not isinstance(edit, Round))
        return realise(self.graph, replace(self.reference, edits=edits))

    def _exported(self) -> OnnxTemplate | None:
        # A batch norm that is not folded is rewritten between its rounds (`clamped_norms`): marks do not tell how.
        if any(op_name(node) == "batch_norm" for node in self.graph.nodes()):
            return None
        if isinstance(self.target, OpenVino | OnnxRuntime):
            return OnnxTemplate.of(self.graph, self.every, self.target.prepared)
        return None

    def _read_memory(self) -> None:
        if self.memory is None or not self.memory.exists():
            return
        text = self.memory.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            with self.memory.open("a", encoding="utf-8") as file:
                file.write("\n")  # what is appended must not be glued to it
        for line in text.splitlines():
            try:
                told = json.loads(line)
                key = told.pop("key")
                self._known[key] = Reading(**told)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # a line that a killed process left half written is measured again


def reading_of(bout: Bout, size_bytes: int) -> Reading:
    """Return what the rounds of one artefact tell: medians, and the standard error of the median ratio."""
    ratios = bout.ratios
    ratio = float(np.median(ratios))
    # From the middle half, as a neighbor on a shared machine makes some rounds worthless: sigma = IQR / 1.349, and a
    # median's standard error is 1.2533 sigma / sqrt(n).
    low, high = np.percentile(ratios, [25, 75])
    error = 1.2533 * (high - low) / 1.349 / np.sqrt(len(ratios)) / ratio
    return Reading(float(np.median(bout.challenger_ms)), ratio, float(error), len(ratios), size_bytes, bout.energy_mj)


def merged(one: Reading, other: Reading) -> Reading:
    """Return two readings of one recipe as one, weighted by their rounds."""
    total = one.rounds + other.rounds
    share, rest = one.rounds / total, other.rounds / total
    error = float(np.hypot(share * one.error, rest * other.error))
    ratio = share * one.ratio + rest * other.ratio
    latency_ms = share * one.latency_ms + rest * other.latency_ms
    return replace(other, latency_ms=latency_ms, ratio=ratio, error=error, rounds=total)


def _kinds(recipe: Recipe) -> str:
    """Return where the rounds of a recipe stand and of what kind they are: what its time depends on, not its values."""
    return question(rounds=sorted(map(_kind, recipe.rounds)))


def _kind(edit: Round) -> str:
    if isinstance(edit.grid, Affine):
        around_zero = not bool(edit.grid.zero_point.any())
        return f"{edit.site} {edit.grid.bits} {edit.grid.signed} {edit.grid.axis} {around_zero}"
    kind = edit.grid.kind if isinstance(edit.grid, FloatType) else type(edit.grid).__name__
    return f"{edit.site} {kind}"
