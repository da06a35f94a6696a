"""OHQ on one target: explore each setting of the runtime, then hold the best against the uniform precisions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from seatrial.core.chance import generator
from seatrial.core.graph import Graph
from seatrial.core.precision import Bits
from seatrial.core.predictor import Inputs
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise
from seatrial.core.recipe import Recipe
from seatrial.core.search import Budget, Found
from seatrial.core.target import Artefact, Target
from seatrial.deploy.alternated import alternated_ms
from seatrial.deploy.chip_meter import ChipMeter
from seatrial.deploy.energy import EnergyCounter, energy_counter
from seatrial.deploy.openvino import OpenVino
from seatrial.deploy.stopwatch import Subject
from seatrial.jobs.search_settings import SearchSettings
from seatrial.quant.assignment import FLOAT, Assignments, Choice
from seatrial.quant.direct_sensitivity import direct
from seatrial.quant.mask_guided import MaskGuided
from seatrial.quant.ohq import OHQ, Exploration
from seatrial.quant.placement import place_operators, quantizable

Tell = Callable[[str], None]
INTEGERS = "w8a8"
_RESERVE = 0.2
"""Share of the time that is kept for planning and exporting what is delivered, and for the last measurement."""
_FINALISTS = 3
_SAMPLES = 16
"""Calibration samples on which sensitivity is estimated."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network as files; `found` is None for one that was not searched: a uniform precision."""

    name: str
    setting: str
    artefact: Artefact
    recipe: Recipe | None = None
    graph: Graph | None = None
    found: Found | None = None


@dataclass(frozen=True, eq=False)
class Uniform:
    """The uniform networks of a target, `rounds_ms` of one call of each: [round, network]."""

    planned: Recipe
    candidates: tuple[Candidate, ...]
    rounds_ms: np.ndarray

    @property
    def medians_ms(self) -> dict[str, float]:
        """The median milliseconds of one call by name."""
        medians = np.median(self.rounds_ms, axis=0)
        return {one.name: float(ms) for one, ms in zip(self.candidates, medians, strict=True)}


@dataclass(frozen=True, eq=False)
class Searched:
    """What a search on one target found: finalists with the setting that they run in, the fastest first."""

    uniform: Uniform
    finalists: tuple[tuple[str, Found], ...]
    explorations: Mapping[str, Exploration]
    steps: tuple[dict[str, Any], ...]
    interrupted: bool
    energy: EnergyCounter | None
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ChipSearch:
    """Searches one target with one quantizer; every measurement is kept in `measurements.jsonl` of the run's folder."""

    target: Target
    quantizer: Quantizer
    wishes: SearchSettings
    threads: int
    seed: int = 0
    keep: tuple[str, ...] = ()
    tell: Tell = field(default=lambda text: None)

    def uniform(self, graph: Graph, batches: Sequence[Inputs], folder: Path) -> Uniform:
        """Write the uniform networks of a graph whose batch norms are folded, and measure them."""
        folder.mkdir(parents=True, exist_ok=True)
        planned = self._planned(graph, batches)
        candidates = self._uniform(graph, planned, folder)
        self.tell(f"measuring the uniform precisions on {self.target.name}")
        return Uniform(planned, tuple(candidates), self.alternated(candidates, rounds=16))

    def run(self, graph: Graph, batches: Sequence[Inputs], folder: Path, uniform: Uniform, start_s: float) -> Searched:
        """Search the graph of `uniform`; after Ctrl-C return what is known by then. `start_s` is when the time budget
        began, on the monotonic clock.

        Each setting of the runtime is searched by itself; one whose uniform networks are no faster than another's is
        left out, which is noted. Raises as the quantizer and the target do.
        """
        counter = energy_counter()
        settings, notes = _worth_searching(uniform)
        explorations: dict[str, Exploration] = {}
        steps: list[dict[str, Any]] = []
        interrupted = False
        try:
            for position, setting in enumerate(settings):
                left_s = (1 - _RESERVE) * self.wishes.time_budget_s - (time.monotonic() - start_s)
                share_s = left_s if position == len(settings) - 1 else 0.6 * left_s
                explorations[setting] = self._exploration(
                    graph, batches, uniform.planned, folder, setting, share_s, counter
                )
                self._follow(explorations[setting], setting, steps, start_s)
        except KeyboardInterrupt:
            interrupted = True
            self.tell("stopped: the best so far is written")
        finalists = [
            (one.reading.ratio * uniform.medians_ms[_integers(setting)], setting, one)
            for setting, exploration in explorations.items()
            for one in exploration.fastest()[:_FINALISTS]
            if len(set(one.choice.values())) > 1
        ]
        ordered = tuple((setting, one) for _, setting, one in sorted(finalists, key=lambda item: item[0]))
        return Searched(uniform, ordered, explorations, tuple(steps), interrupted, counter, tuple(notes))

    def deliver(
        self, graph: Graph, batches: Sequence[Inputs], finalist: tuple[str, Found], searched: Searched, folder: Path
    ) -> Candidate:
        """Plan a finalist as the quantizer would have it, and write its file."""
        setting, found = finalist
        self.tell("planning and exporting the choice")
        target = self.in_setting(setting)
        precision = searched.explorations[setting].assignments.precision(found.choice)
        recipe = self.quantizer.plan(graph, batches, precision, rng=generator(self.seed, "ohq"))
        rounded = realise(graph, recipe)
        artefact = target.compile(rounded, folder / f"ohq-{target.name}", bits="mixed")
        return Candidate("ohq", setting, artefact, recipe, rounded, found)

    def alternated(self, candidates: Sequence[Candidate], rounds: int = 40) -> np.ndarray:
        """Return the milliseconds of one call of each candidate, [round, candidate]."""
        subjects = [Subject(self.target.name, candidate.artefact) for candidate in candidates]
        return alternated_ms(subjects, threads=self.threads, batch=self.wishes.batch, rounds=rounds)

    def in_setting(self, setting: str) -> Target:
        """Return the target whose float operators run in the type of a setting."""
        if isinstance(self.target, OpenVino):
            return replace(self.target, hint="bf16" if setting == "bf16" else "f32")
        return self.target

    def _planned(self, graph: Graph, batches: Sequence[Inputs]) -> Recipe:
        self.tell("planning uniform integers")
        rules = self.target.placement
        wanted = dict.fromkeys(quantizable(graph, rules, keep=self.keep), Bits.parse(INTEGERS))
        return self.quantizer.plan(
            graph, batches, place_operators(graph, rules, wanted), rng=generator(self.seed, "ohq")
        )

    def _uniform(self, graph: Graph, planned: Recipe, folder: Path) -> list[Candidate]:
        """Return the uniform networks: floats in each setting, then integers in each, which share a file."""
        found, integers = [], []
        self.tell("exporting the uniform precisions")
        rounded = realise(graph, planned)
        whole = self.target.compile(rounded, folder / f"{INTEGERS}-{self.target.name}", bits=INTEGERS)
        for kind in self.target.precisions:
            artefact = self.target.compile(graph, folder / f"{kind}-{self.target.name}", bits=kind)
            found.append(Candidate(kind, kind, artefact))
            settings = {**whole.settings, **{k: v for k, v in artefact.settings.items() if k == "hint"}}
            integers.append(Candidate(_integers(kind), kind, replace(whole, settings=settings), planned, rounded))
        return [*found, *integers]

    def _exploration(
        self,
        graph: Graph,
        batches: Sequence[Inputs],
        planned: Recipe,
        folder: Path,
        setting: str,
        seconds: float,
        counter: EnergyCounter | None,
    ) -> Exploration:
        target, memory = self.in_setting(setting), folder / "measurements.jsonl"

        def meter(graph: Graph, every: Recipe, reference: Recipe) -> ChipMeter:
            self.tell("exporting once for all assignments")
            return ChipMeter(
                target, graph, every, reference, self.threads, self.wishes.batch, memory=memory, energy=counter
            )

        search = OHQ(
            self.quantizer,
            target.placement,
            meter,
            (INTEGERS, FLOAT),
            lambda assignments, uniform: self._sensitivity(assignments, uniform, batches),
            self.keep,
        )
        megabytes = self.wishes.max_size_mb
        budget = Budget(
            max(seconds, 1.0),
            size_bytes=None if megabytes is None else megabytes * 1e6,
            energy_mj=self.wishes.max_energy_mj,
        )
        return search.explore(graph, batches, budget, rng=generator(self.seed, "ohq", setting), planned=planned)

    def _sensitivity(
        self, assignments: Assignments, uniform: Sequence[Choice], batches: Sequence[Inputs]
    ) -> Mapping[tuple[str, str], float]:
        self.tell("estimating sensitivity")
        recipes = {next(iter(choice.values())): assignments.recipe(choice) for choice in uniform}
        groups = {
            group.name: {name: assignments.sites_of(group.name, recipe.rounds) for name, recipe in recipes.items()}
            for group in assignments.grouping.groups
        }
        batch = _first(batches, _SAMPLES)
        if self.wishes.sensitivity == "direct":
            return direct(assignments.graph, recipes, groups, batch)
        return MaskGuided().estimate(assignments.graph, recipes, groups, batch, rng=generator(self.seed, "mqe"))

    def _follow(self, exploration: Exploration, setting: str, steps: list[dict[str, Any]], start_s: float) -> None:
        for number, found in enumerate(exploration, 1):
            best = exploration.best.reading
            second = time.monotonic() - start_s
            told = {"second": second, "step": found.step, "setting": setting}
            steps.append({**told, "ratio": found.reading.ratio, "best": best.ratio})
            self.tell(f"{setting}: {number} measured, best {best.latency_ms:.2f} ms ({best.ratio:.3f} of uniform int8)")


def _integers(setting: str) -> str:
    return INTEGERS if setting == "float32" else f"{INTEGERS}+{setting}"


def _worth_searching(uniform: Uniform) -> tuple[list[str], list[str]]:
    """Return the settings to search, the most promising first, and why others are left out."""
    told = uniform.medians_ms
    settings = list(dict.fromkeys(one.setting for one in uniform.candidates))
    order = sorted(settings, key=lambda setting: told[setting] + told[_integers(setting)])
    kept, notes = order[:1], []
    for setting in order[1:]:
        floats = told[setting] / told[order[0]]
        integers = told[_integers(setting)] / told[_integers(order[0])]
        if floats > 1.0 and integers > 0.98:
            notes.append(
                f"{setting} was not searched: its float network takes {floats:.2f} times as long as with {order[0]}, "
                f"its integers {integers:.2f} times"
            )
        else:
            kept.append(setting)
    return kept, notes


def _first(batches: Sequence[Inputs], count: int) -> Inputs:
    first = batches[0]
    if isinstance(first, Mapping):
        return {name: tensor[:count] for name, tensor in first.items()}
    return first[:count]
