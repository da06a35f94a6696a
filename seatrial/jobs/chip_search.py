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
from seatrial.core.precision import Bits, Precision
from seatrial.core.predictor import Inputs
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise
from seatrial.core.recipe import Recipe
from seatrial.core.search import Budget, Found
from seatrial.core.sites import Site
from seatrial.core.target import Artefact, Target
from seatrial.deploy.alternated import alternated_ms
from seatrial.deploy.chip_meter import ChipMeter
from seatrial.deploy.energy import EnergyCounter, energy_counter
from seatrial.deploy.openvino import OpenVino
from seatrial.deploy.stopwatch import Subject
from seatrial.deploy.systolic import Systolic
from seatrial.deploy.systolic_meter import SystolicMeter
from seatrial.jobs.search_settings import SearchSettings
from seatrial.quant.assignment import FLOAT, Assignments, Choice, integer_grids
from seatrial.quant.direct_sensitivity import direct
from seatrial.quant.mask_guided import MaskGuided
from seatrial.quant.ohq import OHQ, Exploration
from seatrial.quant.placement import place_operators, quantizable

Tell = Callable[[str], None]
INTEGERS = "w8a8"
"""The precision that costs are held against."""
_NARROW = ("w4a4", "w2a2")
"""What a modeled chip runs besides."""
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

    def reference_ms(self, setting: str) -> float:
        """Return the median milliseconds of the network that the ratios of a setting are held against."""
        return self.medians_ms[in_words(INTEGERS, setting)]


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

    def exploration_of(self, setting: str) -> Exploration | None:
        """Return what was explored in a setting, else in the first one that was searched."""
        return self.explorations.get(setting) or next(iter(self.explorations.values()), None)


@dataclass(frozen=True, eq=False)
class ChipSearch:
    """Searches one target with one quantizer; every measurement is kept in `measurements.jsonl` of the run's folder.

    The quantizer plans each uniform network at its precision and what is delivered at the chosen ones. All choices in
    between share the migrations and ranges of the uniform 8-bit plan (see `Assignments`): one export serves them all.
    """

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
        recipes = {precision: self._planned(graph, batches, precision) for precision in self.integers}
        candidates = self._uniform(graph, recipes, folder)
        self.tell(f"measuring the uniform precisions on {self.target.name}")
        return Uniform(recipes[INTEGERS], tuple(candidates), self.alternated(candidates, rounds=16))

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
            (one.reading.ratio * uniform.reference_ms(setting), setting, one)
            for setting, exploration in explorations.items()
            for one in _worth_delivering(exploration)
        ]
        ordered = tuple((setting, one) for _, setting, one in sorted(finalists, key=lambda item: item[0]))
        notes += [note for exploration in explorations.values() for note in exploration.notes]
        return Searched(uniform, ordered, explorations, tuple(steps), interrupted, counter, tuple(notes))

    def deliver(
        self, graph: Graph, batches: Sequence[Inputs], number: int, searched: Searched, folder: Path
    ) -> Candidate:
        """Plan a finalist, by its number, as the quantizer would have it, and write its file."""
        setting, found = searched.finalists[number]
        self.tell("planning and exporting the choice")
        target = self.in_setting(setting)
        precision = searched.explorations[setting].assignments.precision(found.choice)
        recipe = self._plan(graph, batches, precision)
        rounded = realise(graph, recipe)
        artefact = target.compile(rounded, folder / f"ohq{number}-{target.name}", bits="mixed")
        return Candidate("ohq", setting, artefact, recipe, rounded, found)

    def alternated(self, candidates: Sequence[Candidate], rounds: int = 40) -> np.ndarray:
        """Return the milliseconds of one call of each candidate, [round, candidate]."""
        if isinstance(self.target, Systolic):
            artefacts = [candidate.artefact for candidate in candidates]
            told = self.target.time(artefacts, threads=self.threads, batches=(self.wishes.batch,))
            return np.asarray([[timing.latency[0].median for timing in told]])
        subjects = [Subject(self.target.name, candidate.artefact) for candidate in candidates]
        return alternated_ms(subjects, threads=self.threads, batch=self.wishes.batch, rounds=rounds)

    @property
    def integers(self) -> tuple[str, ...]:
        """The integer precisions that the target runs: below 8 bits only where it is modeled."""
        if not isinstance(self.target, Systolic):
            return (INTEGERS,)
        return (INTEGERS, *(name for name in _NARROW if Bits.parse(name).weights in self.target.bit_widths))

    def in_setting(self, setting: str) -> Target:
        """Return the target whose float operators run in the type of a setting."""
        if isinstance(self.target, OpenVino):
            return replace(self.target, hint="bf16" if setting == "bf16" else "f32")
        return self.target

    def _planned(self, graph: Graph, batches: Sequence[Inputs], precision: str) -> Recipe:
        self.tell(f"planning uniform {precision}")
        rules = self.target.placement
        wanted = dict.fromkeys(quantizable(graph, rules, keep=self.keep), Bits.parse(precision))
        return self._plan(graph, batches, place_operators(graph, rules, wanted))

    def _plan(self, graph: Graph, batches: Sequence[Inputs], precision: Mapping[Site, Precision]) -> Recipe:
        """Return what the quantizer plans; raises BadInput for grids that no integer kernel reads."""
        return integer_grids(self.quantizer.plan(graph, batches, precision, rng=generator(self.seed, "ohq")))

    def _uniform(self, graph: Graph, recipes: Mapping[str, Recipe], folder: Path) -> list[Candidate]:
        """Return the uniform networks: floats in each setting, then integers in each, which share a file."""
        self.tell("exporting the uniform precisions")
        floats = [
            Candidate(kind, kind, self.target.compile(graph, folder / f"{kind}-{self.target.name}", bits=kind))
            for kind in self.target.precisions
        ]
        integers: list[Candidate] = []
        for precision, recipe in recipes.items():
            rounded = realise(graph, recipe)
            whole = self.target.compile(rounded, folder / f"{precision}-{self.target.name}", bits=precision)
            for plain in floats:
                hint = {key: value for key, value in plain.artefact.settings.items() if key == "hint"}
                artefact = replace(whole, settings={**whole.settings, **hint})
                name = in_words(precision, plain.setting)
                integers.append(Candidate(name, plain.setting, artefact, recipe, rounded))
        return [*floats, *integers]

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

        def meter(graph: Graph, every: Recipe, reference: Recipe) -> ChipMeter | SystolicMeter:
            if isinstance(target, Systolic):
                return SystolicMeter(target, graph, reference, self.wishes.batch)
            self.tell("exporting once for all assignments")
            return ChipMeter(
                target, graph, every, reference, self.threads, self.wishes.batch, memory=memory, energy=counter
            )

        search = OHQ(
            self.quantizer,
            target.placement,
            meter,
            (*self.integers, FLOAT),
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


def in_words(precision: str, setting: str) -> str:
    """Return the name of uniform integers beside float operators of a setting: `w8a8`, `w8a8+bf16`."""
    return precision if setting == "float32" else f"{precision}+{setting}"


def _worth_searching(uniform: Uniform) -> tuple[list[str], list[str]]:
    """Return the settings to search, the most promising first, and why others are left out."""
    told = uniform.medians_ms
    settings = list(dict.fromkeys(one.setting for one in uniform.candidates))
    order = sorted(settings, key=lambda setting: told[setting] + told[in_words(INTEGERS, setting)])
    kept, notes = order[:1], []
    for setting in order[1:]:
        floats = told[setting] / told[order[0]]
        integers = told[in_words(INTEGERS, setting)] / told[in_words(INTEGERS, order[0])]
        if floats > 1.0 and integers > 0.98:
            notes.append(
                f"{setting} was not searched: its float network takes {floats:.2f} times as long as with {order[0]}, "
                f"its integers {integers:.2f} times"
            )
        else:
            kept.append(setting)
    return kept, notes


def _worth_delivering(exploration: Exploration) -> list[Found]:
    """Return the fastest mixtures, then slower ones that are each less sensitive than all before them."""
    mixed = [one for one in exploration.fastest() if len(set(one.choice.values())) > 1]
    kept, least = mixed[:_FINALISTS], min((one.sensitivity for one in mixed[:_FINALISTS]), default=0.0)
    for one in mixed[_FINALISTS:]:
        if one.sensitivity < 0.9 * least:
            kept.append(one)
            least = one.sensitivity
    return kept


def _first(batches: Sequence[Inputs], count: int) -> Inputs:
    first = batches[0]
    if isinstance(first, Mapping):
        return {name: tensor[:count] for name, tensor in first.items()}
    return first[:count]
