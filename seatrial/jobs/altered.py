"""A variant in another system: other operators, another arithmetic, on the target that it runs on."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

from seatrial.catalogue import make
from seatrial.core.alter_graph import altered, carried
from seatrial.core.cell import digest, question
from seatrial.core.graph import Graph, GraphPredictor
from seatrial.core.in_place import overwriting
from seatrial.core.noise import System
from seatrial.core.predictor import Predictor
from seatrial.core.realise import realise
from seatrial.core.recipe import Recipe
from seatrial.core.target import Artefact, Target
from seatrial.deploy.torch_target import TorchPredictor, open_graph
from seatrial.errors import NoNoise, NotApplicable

_FLOATS = ("float32", "bf16", "fp16")
_SETTINGS = "artefact.json"


@final
@dataclass(frozen=True)
class Planned:
    """The recipe (as `Recipe.save` names it) of `bits` for `target`, and the `.pt2` of the float graph it is for."""

    recipe: Path
    graph: Artefact
    target: str
    bits: str

    @property
    def content(self) -> tuple[bytes, ...]:
        """The bytes of the recipe and the graph."""
        beside = [self.recipe.with_name(self.recipe.name + ending) for ending in (".json", ".safetensors")]
        return tuple(file.read_bytes() for file in (*beside, *self.graph.files))


@final
@dataclass(frozen=True)
class Graphs:
    """Float graphs of one process and what edits made of them, each read and captured once."""

    _kept: dict[tuple[Path, tuple[str, ...]], Graph] = field(default_factory=dict, compare=False, repr=False)

    def graph(self, artefact: Artefact) -> Graph:
        """Return the graph of a `.pt2`."""
        key = (artefact.path, ())
        if key not in self._kept:
            self._kept[key] = open_graph(artefact)[0]
        return self._kept[key]

    def altered(self, artefact: Artefact, edits: tuple[str, ...]) -> Graph:
        """Return the graph of a `.pt2` with edits; raises what `seatrial.core.alter_graph.altered` raises."""
        key = (artefact.path, edits)
        if key not in self._kept:
            self._kept[key] = altered(self.graph(artefact), edits)
        return self._kept[key]


@final
@dataclass(frozen=True)
class Altered:
    """Gives the predictor of a variant in another system; a file is compiled anew beside the variant's own.

    `graph` is the float graph that the variant was made from (None for a file that seatrial did not write), `planned`
    the recipe that made integers of it or, for a float variant, would; `digest` is the hash of all of it. Edits of
    the float graph come first, then the recipe that was planned on the unaltered one.
    """

    name: str
    target: str
    artefact: Artefact
    graph: Artefact | None
    planned: Planned | None
    digest: str
    predictor: Predictor
    graphs: Graphs
    threads: int

    def __call__(self, system: System) -> Predictor:
        """Return the predictor, itself where nothing of its own differs.

        Raises NotApplicable where the target, the file or the graph has no such choice, NoNoise where the choice is
        made already. What one part of the system leaves as it was does not keep the others from being altered.
        """
        wanted, reasons, changed = str(system.arithmetic), list[str](), False
        if wanted == "int8" and self._integers:
            reasons.append(f"{self.name} runs in integers already")
            wanted = "as-is"
        if system.graph:
            try:
                self._edited(system.graph)
                changed = True
            except NoNoise as nothing:
                reasons.append(str(nothing))
        if not changed and wanted == "as-is":
            if reasons:
                raise NoNoise("; ".join(reasons))
            return self.predictor
        edits = system.graph if changed else ()
        if isinstance(self.predictor, TorchPredictor):
            return self._simulated(self.predictor.inner, edits, wanted)
        return self._deployed(edits, wanted)

    @property
    def _integers(self) -> bool:
        return self.artefact.bits not in (*_FLOATS, "as-deployed")

    def _edited(self, edits: tuple[str, ...]) -> Graph:
        """Return the float graph with edits."""
        source = self._source()
        return self.graphs.altered(source, edits) if edits else self.graphs.graph(source)

    def _source(self) -> Artefact:
        if self.graph is None:
            raise NotApplicable(
                f"{self.name} is a deployed file: its operators are as they are; add the float original"
            )
        if self._integers:
            return self._plan().graph
        return self.graph

    def _plan(self) -> Planned:
        if self.planned is None:
            if self._integers:
                raise NotApplicable(f"the recipe of {self.name} was not kept beside it")
            raise NotApplicable(f"no 8-bit integers were planned for {self.name}: they are with --bits w8a8")
        return self.planned

    def _whole(self, edits: tuple[str, ...], wanted: str) -> Graph:
        """Return the graph with edits and, for integers, the recipe on it."""
        changed = self._edited(edits)
        if not self._integers and wanted != "int8":
            return changed
        plan = self._plan()
        return realise(changed, carried(Recipe.load(plan.recipe), self.graphs.graph(plan.graph), changed))

    def _simulated(self, inner: GraphPredictor, edits: tuple[str, ...], wanted: str) -> Predictor:
        arithmetic = wanted if wanted in ("fp16", "bf16") else inner.arithmetic
        if not edits and wanted != "int8":
            return TorchPredictor(replace(inner, arithmetic=arithmetic), self.threads)
        graph = self._whole(edits, wanted)
        if self._integers or wanted == "int8":
            graph = make("target", self._plan().target).simulated(graph)
        return TorchPredictor(GraphPredictor(overwriting(graph), inner.device, arithmetic), self.threads)

    def _deployed(self, edits: tuple[str, ...], wanted: str) -> Predictor:
        target: Target = make("target", self.target)
        hint = {}
        if wanted in ("fp16", "bf16"):
            if self.target != "openvino" or wanted != "bf16" or self.artefact.settings.get("hint") != "f32":
                raise NotApplicable(f"{self.target} has no {wanted} arithmetic for this file")
            if "bf16" not in target.precisions:
                raise NotApplicable("this CPU does not execute bf16")
            hint = {"hint": "bf16"}
        artefact = self.artefact
        if wanted == "int8" and self.graph is None:
            raise NotApplicable(
                f"{self.name} is a deployed file: its arithmetic is as it is; ask for int8 of the float original"
            )
        if wanted == "int8" and artefact.bits != "float32":
            raise NotApplicable(f"{self.name} on {self.target} is narrowed already; ask for int8 of the float variant")
        if edits or wanted == "int8":
            artefact = self._compiled(target, edits, wanted)
        return target.open(replace(artefact, settings={**artefact.settings, **hint}), threads=self.threads)

    def _compiled(self, target: Target, edits: tuple[str, ...], wanted: str) -> Artefact:
        """Return the artefact of the altered graph: a folder named by what is in it, written aside and renamed."""
        bits = self._plan().bits if wanted == "int8" else self.artefact.bits
        key = digest(self.digest, question(edits=list(edits), bits=bits))[:16]
        folder = self.artefact.path.parent / "altered" / f"{self.name}-{self.target}-{key}"
        if not (folder / _SETTINGS).exists():
            aside = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.aside")
            aside.mkdir(parents=True)
            try:
                found = target.compile(self._whole(edits, wanted), aside / "model", bits=bits)
                about = {"file": found.path.name, "format": found.format, "settings": dict(found.settings)}
                (aside / _SETTINGS).write_text(json.dumps(about) + "\n", encoding="utf-8")
                try:
                    os.replace(aside, folder)
                except OSError:  # another process was faster; its files are the same
                    if not (folder / _SETTINGS).exists():
                        raise
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        about: Mapping = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        return Artefact(folder / about["file"], about["format"], bits, about["settings"])
