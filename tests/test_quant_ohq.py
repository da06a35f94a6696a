"""The search against brute force, on made-up chips that know what each choice costs; no real one is needed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch
from test_quant_placement import W8A8, graph_of

from seatrial.core.chance import generator
from seatrial.core.graph import Graph
from seatrial.core.recipe import Recipe
from seatrial.core.search import Budget, CannotRun, Found, Meter, Reading
from seatrial.core.sites import Site, signature
from seatrial.deploy.chip_meter import merged
from seatrial.deploy.onnxruntime import OnnxRuntime
from seatrial.deploy.openvino import OpenVino
from seatrial.quant.assignment import FLOAT, Assignments, Choice
from seatrial.quant.groups import group_operators
from seatrial.quant.nearest import Nearest
from seatrial.quant.ohq import OHQ, Exploration
from seatrial.quant.placement import place

RULES = {"openvino": OpenVino().placement, "onnxruntime": OnnxRuntime().placement}
PRECISIONS = ("w8a8", FLOAT)
Key = tuple[str, ...]
Sites = frozenset[Site]


@cache
def assignments(name: str, rules: str) -> Assignments:
    graph, placement = graph_of(name), RULES[rules]
    x = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(5))
    planned = Nearest().plan(graph, [{graph.inputs[0].name: x}], place(graph, placement, W8A8), rng=generator(0))
    return Assignments(graph, placement, group_operators(graph, placement), planned)


@cache
def every_choice(name: str, rules: str) -> dict[Sites, Key]:
    """All choices by the sites that their recipes round."""
    one = assignments(name, rules)
    names = [group.name for group in one.grouping.groups]
    found: dict[Sites, Key] = {}
    for key in itertools.product(PRECISIONS, repeat=len(names)):
        sites = frozenset(edit.site for edit in one.rounds(dict(zip(names, key, strict=True))))
        assert sites not in found, "two choices round the same tensors"
        found[sites] = key
    return found


class Clock:
    """Time that only measurements take."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Chip:
    """A meter with a table of the time, the size and the energy of each choice; it remembers, and merges, readings."""

    def __init__(
        self,
        choices: Mapping[Sites, Key],
        ratios: Mapping[Key, float],
        *,
        noise: float = 0.0,
        seed: int = 0,
        clock: Clock | None = None,
        refused: Callable[[Key], bool] = lambda key: False,
        stops_after: int | None = None,
    ) -> None:
        self.choices, self.ratios, self.noise = choices, ratios, noise
        self.clock, self.refused, self.stops_after = clock, refused, stops_after
        self.rng = np.random.default_rng(seed)
        self.asked: list[Key] = []
        self.drawn: dict[Key, list[float]] = {}
        self.known: dict[Key, Reading] = {}
        self.every: Sites = frozenset()
        self.is_open = False

    @contextmanager
    def open(self, graph: Graph, every: Recipe, reference: Recipe) -> Iterator[Meter]:
        self.every = frozenset(edit.site for edit in every.rounds)
        assert set(self.choices[frozenset(edit.site for edit in reference.rounds)]) == {"w8a8"}
        self.is_open = True
        try:
            yield self
        finally:
            self.is_open = False

    def time(self, recipes: Sequence[Recipe], *, rounds: int | None = None) -> list[Reading]:
        assert self.is_open
        return [self._reading(recipe, rounds or 8) for recipe in recipes]

    def _reading(self, recipe: Recipe, rounds: int) -> Reading:
        sites = frozenset(edit.site for edit in recipe.rounds)
        assert sites <= self.every, "a site that was not exported"
        key = self.choices[sites]
        if self.stops_after is not None and len(self.asked) >= self.stops_after:
            raise KeyboardInterrupt
        self.asked.append(key)
        if self.refused(key):
            raise CannotRun("the process ended")
        known = self.known.get(key)
        if known is not None and known.rounds >= rounds:
            return known
        fresh = rounds - (known.rounds if known else 0)
        if self.clock is not None:
            self.clock.now_s += fresh / 8
        # Noise is that of eight rounds, and falls with their root.
        ratio = self.ratios[key] * (1 + self.noise * float(self.rng.normal()) * (8 / fresh) ** 0.5)
        self.drawn.setdefault(key, []).append(ratio)
        size = 1000 + 100 * key.count(FLOAT)
        new = Reading(10 * ratio, ratio, self.noise * (8 / fresh) ** 0.5, fresh, size)
        self.known[key] = merged(known, new) if known else new
        return self.known[key]


def hidden(name: str, rules: str, seed: int, changes: float = 0.05) -> dict[Key, float]:
    """Return the ratio of each choice: a cost for each shape in float, and one for each change of precision."""
    one = assignments(name, rules)
    rng = np.random.default_rng(seed)
    groups, neighbors = one.grouping.groups, one.grouping.neighbors
    cost = {shapes: float(rng.uniform(-0.08, 0.1)) for shapes in dict.fromkeys(group.shapes for group in groups)}
    change = {(edge.shapes, first): float(rng.uniform(0, changes)) for edge in neighbors for first in PRECISIONS}
    table = {}
    for key in every_choice(name, rules).values():
        choice = dict(zip((group.name for group in groups), key, strict=True))
        ratio = 1.0 + sum(cost[group.shapes] for group in groups if choice[group.name] == FLOAT)
        for edge in neighbors:
            if choice[edge.producer] != choice[edge.reader]:
                ratio += change[edge.shapes, choice[edge.producer]]
        table[key] = ratio
    return table


def explored(
    chip: Chip, name: str, rules: str, budget: Budget | None = None, seed: int = 0, **options: object
) -> Exploration:
    one = assignments(name, rules)
    clock = chip.clock or Clock()
    search = OHQ(Nearest(), RULES[rules], chip.open, PRECISIONS, clock_s=clock, **options)  # pyright: ignore[reportArgumentType]
    return search.explore(one.graph, [], budget or Budget(), rng=generator(seed), planned=one.planned)


def keys(found: Sequence[Found], exploration: Exploration) -> list[Key]:
    names = [group.name for group in exploration.grouping.groups]
    return [tuple(one.choice[name] for name in names) for one in found]


CASES = [("Attention", "onnxruntime"), ("Attention", "openvino"), ("Fire", "openvino")]


@pytest.mark.parametrize(("name", "rules"), CASES)
@pytest.mark.parametrize("seed", range(2))
def test_the_best_choice_is_found(name: str, rules: str, seed: int) -> None:
    """Against every choice there is, where costs and changes add up; and the model foretells them all."""
    table = hidden(name, rules, seed)
    chip = Chip(every_choice(name, rules), table)
    exploration = explored(chip, name, rules, seed=seed)
    told = list(exploration)
    least = min(table.values())
    assert least < min(table[key] for key in table if len(set(key)) == 1), "the table is too easy"
    assert exploration.best.reading.ratio == pytest.approx(least, abs=1e-9)
    assert exploration.converged
    assert exploration.notes == []
    assert not chip.is_open
    # Measured are far fewer than there are.
    assert set(keys(told, exploration)) == set(chip.asked) == set(exploration.found)
    assert len(exploration.found) < len(table)
    assert exploration.additivity is None or exploration.additivity.trusted
    assert exploration.model is not None
    names = [group.name for group in exploration.grouping.groups]
    errors = [exploration.model.predict(dict(zip(names, key, strict=True))) - ratio for key, ratio in table.items()]
    assert np.abs(errors).max() < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_laws_of_a_search(seed: int) -> None:
    """Replayed from a table without any pattern: all that is told was measured, and nothing in the graph changes."""
    name, rules = "Attention", "onnxruntime"
    one = assignments(name, rules)
    rng = np.random.default_rng(seed)
    table = {key: float(rng.uniform(0.5, 2.0)) for key in every_choice(name, rules).values()}
    before = {part: value.clone() for part, value in one.graph.module.state_dict().items()}
    nodes = signature(one.graph)
    chip = Chip(every_choice(name, rules), table)
    exploration = explored(chip, name, rules, seed=seed)
    steps = set()
    for found in exploration:
        (key,) = keys([found], exploration)
        assert key in chip.asked
        assert found.reading == chip.known[key]
        assert every_choice(name, rules)[frozenset(edit.site for edit in found.recipe.rounds)] == key
        assert exploration.best.reading.ratio <= found.reading.ratio
        steps.add(found.step)
    assert steps <= {"uniform", "flip", "validation", "program", "polish"}
    assert {"uniform", "flip"} <= steps
    ratios = [found.reading.ratio for found in exploration.fastest()]
    assert ratios == pytest.approx(sorted(table[key] for key in exploration.found))
    assert ratios == sorted(ratios)
    assert (
        exploration.best.reading.ratio
        == ratios[0]
        <= min(found.reading.ratio for found in exploration.uniform.values())
    )
    assert set(exploration.uniform) == set(PRECISIONS)
    after = one.graph.module.state_dict()
    assert all(torch.equal(value, after[part]) for part, value in before.items())
    assert signature(one.graph) == nodes


def test_equal_seeds_ask_for_equal_choices() -> None:
    table = hidden("Fire", "openvino", seed=3)
    asked = []
    for _ in range(2):
        chip = Chip(every_choice("Fire", "openvino"), table, noise=0.01, seed=4)
        list(explored(chip, "Fire", "openvino", seed=5))
        asked.append(chip.asked)
    assert asked[0] == asked[1]


def test_a_search_plans_by_itself() -> None:
    """`run` plans with the quantizer; a kept operator is in no choice."""
    graph = graph_of("Residual")
    x = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(5))
    seen: list[tuple[int, int]] = []

    class Counting:
        def time(self, recipes: Sequence[Recipe], *, rounds: int | None = None) -> list[Reading]:
            return [Reading(5.0, 2.0 - 0.1 * len(recipe.rounds), 0.0, rounds or 8, 100) for recipe in recipes]

    @contextmanager
    def opened(graph: Graph, every: Recipe, reference: Recipe) -> Iterator[Meter]:
        seen.append((len(every.rounds), len(reference.rounds)))
        yield Counting()

    search = OHQ(Nearest(), RULES["openvino"], opened, keep=("one",))
    told = list(search.run(graph, [{graph.inputs[0].name: x}], Budget(), rng=generator(0)))
    assert len(seen) == 1
    assert seen[0][0] >= seen[0][1] > 0
    assert all("one/conv2d#0" not in found.choice for found in told)
    assert not any(edit.site.operator == "one/conv2d#0" for found in told for edit in found.recipe.rounds)
    best = min(told, key=lambda found: found.reading.ratio)
    assert len(best.recipe.rounds) == max(len(found.recipe.rounds) for found in told)


# Bounds


@pytest.mark.parametrize("floats", [0, 2, 4])
def test_a_bound_on_the_size_is_kept(floats: int) -> None:
    name, rules = "Attention", "onnxruntime"
    table = hidden(name, rules, seed=0)
    exploration = explored(Chip(every_choice(name, rules), table), name, rules, Budget(size_bytes=1000 + 100 * floats))
    list(exploration)
    kept = [key for key in exploration.found if key.count(FLOAT) <= floats]
    assert len(kept) < len(exploration.found)
    assert exploration.best.reading.ratio == pytest.approx(min(table[key] for key in kept))
    assert keys(exploration.fastest(), exploration) == sorted(kept, key=lambda key: table[key])


@pytest.mark.parametrize("most", [0.0, 1.0, 2.5])
def test_a_bound_on_sensitivity_is_kept_and_searched_for(most: float) -> None:
    """A stub tells the sensitivity of each group; the best choice is that of brute force within the bound."""
    name, rules = "Attention", "onnxruntime"
    table = hidden(name, rules, seed=1)
    names = [group.name for group in assignments(name, rules).grouping.groups]
    told = {group: 0.3 + 0.2 * i for i, group in enumerate(names)}
    asked: list[list[set[str]]] = []

    def estimate(given: Assignments, uniform: Sequence[Choice]) -> Mapping[tuple[str, str], float]:
        asked.append([set(choice.values()) for choice in uniform])
        return {(group, "w8a8"): value for group, value in told.items()}

    def total(key: Key) -> float:
        return sum(told[group] for group, precision in zip(names, key, strict=True) if precision != FLOAT)

    chip = Chip(every_choice(name, rules), table)
    exploration = explored(chip, name, rules, Budget(sensitivity=most), estimate=estimate)
    for found in exploration:
        assert found.sensitivity == pytest.approx(total(keys([found], exploration)[0]))
    assert asked == [[{"w8a8"}]]
    assert exploration.best.sensitivity <= most
    within = [ratio for key, ratio in table.items() if total(key) <= most]
    assert exploration.best.reading.ratio == pytest.approx(min(within), abs=1e-9)


def test_bounds_on_latency_and_energy() -> None:
    name, rules = "Attention", "onnxruntime"
    table = hidden(name, rules, seed=0)
    exploration = explored(Chip(every_choice(name, rules), table), name, rules, Budget(latency_ms=10.0))
    list(exploration)
    assert all(found.reading.latency_ms <= 10.0 for found in exploration.fastest())
    # Nobody counts energy here: what is not known keeps no bound.
    unknown = explored(Chip(every_choice(name, rules), table), name, rules, Budget(energy_mj=1e9))
    list(unknown)
    assert unknown.fastest() == []
    assert unknown.best.reading.ratio <= 1.0


# Time, noise and what goes wrong


@pytest.mark.parametrize("seconds", [0.5, 10.0, 40.0, 70.0])
def test_the_search_ends_when_its_time_is_over(seconds: float) -> None:
    name, rules = "Fire", "openvino"
    table = hidden(name, rules, seed=2)
    clock = Clock()
    chip = Chip(every_choice(name, rules), table, clock=clock)
    exploration = explored(chip, name, rules, Budget(seconds=seconds))
    late: set[Key] = set()
    for found in exploration:
        if clock.now_s > seconds:
            late.update(keys([found], exploration))
    # Started are only the checks of the model, and the last look at the fastest.
    assert len(late) <= 2 + 20 + 4
    assert exploration.best.reading.ratio == pytest.approx(min(table[key] for key in exploration.found))
    assert exploration.converged == (clock.now_s < seconds)
    assert exploration.seconds_left() == pytest.approx(seconds - clock.now_s)


def test_noise_alone_is_no_gain() -> None:
    name, rules = "Attention", "onnxruntime"
    table = dict.fromkeys(every_choice(name, rules).values(), 1.0)
    for seed in range(3):
        chip = Chip(every_choice(name, rules), table, noise=0.02, seed=seed)
        exploration = explored(chip, name, rules, seed=seed)
        list(exploration)
        assert abs(exploration.best.reading.ratio - 1) < 3 * 0.02
        assert 0 < exploration.repeat_spread < 0.04
        assert exploration.additivity is None or not exploration.additivity.trusted  # there is no order to foretell


def test_noise_hides_no_large_gain() -> None:
    name, rules = "Attention", "onnxruntime"
    table = hidden(name, rules, seed=0)
    for seed in range(3):
        chip = Chip(every_choice(name, rules), table, noise=0.01, seed=seed)
        exploration = explored(chip, name, rules, seed=seed)
        list(exploration)
        (best,) = keys([exploration.best], exploration)
        assert table[best] < min(table.values()) + 0.02


def test_readings_of_one_choice_are_merged() -> None:
    """The spread of repeats is that of the readings themselves, told apart again; the fastest are measured longer."""
    name, rules = "Attention", "onnxruntime"
    chip = Chip(every_choice(name, rules), hidden(name, rules, seed=0), noise=0.02, seed=1)
    exploration = explored(chip, name, rules)
    list(exploration)
    key = ("w8a8",) * len(exploration.grouping.groups)
    repeats = np.array(chip.drawn[key][:4])
    wanted = float(np.mean(np.abs(repeats - np.median(repeats))))
    error = 0.02 / 4**0.5  # of the four together
    assert exploration.repeat_spread == pytest.approx(max(wanted, error))
    first = exploration.found[key].reading
    assert first.rounds == 32
    assert first.ratio == pytest.approx(float(repeats.mean()))
    assert exploration.best.reading.rounds >= 32


def test_a_machine_that_is_too_noisy_is_not_searched() -> None:
    name, rules = "Attention", "onnxruntime"
    chip = Chip(every_choice(name, rules), hidden(name, rules, seed=0), noise=0.5, seed=3)
    exploration = explored(chip, name, rules)
    told = list(exploration)
    assert {found.step for found in told} == {"uniform"}
    assert set(exploration.found) == {(precision,) * 6 for precision in PRECISIONS}
    assert "too noisy" in exploration.notes[0]
    assert not exploration.converged
    assert exploration.front() == []


def test_what_cannot_run_is_left_out_and_noted() -> None:
    name, rules = "Attention", "onnxruntime"
    table = hidden(name, rules, seed=0)
    best = min(table, key=table.__getitem__)
    chip = Chip(every_choice(name, rules), table, refused=lambda key: key == best)
    exploration = explored(chip, name, rules)
    list(exploration)
    assert best not in exploration.found
    assert chip.asked.count(best) == 1
    assert len(exploration.notes) == 1
    assert "the process ended" in exploration.notes[0]
    assert exploration.best.reading.ratio == pytest.approx(min(table[key] for key in exploration.found))
    assert exploration.best.reading.ratio < min(found.reading.ratio for found in exploration.uniform.values())


@pytest.mark.parametrize("stops_after", [1, 5, 6, 20, 40])
def test_a_search_that_is_stopped_keeps_what_it_knows(stops_after: int) -> None:
    name, rules = "Fire", "openvino"
    table = hidden(name, rules, seed=2)
    chip = Chip(every_choice(name, rules), table, stops_after=stops_after)
    exploration = explored(chip, name, rules)
    with pytest.raises(KeyboardInterrupt):
        list(exploration)
    assert not chip.is_open
    known = set(chip.asked)
    assert set(exploration.found) == known
    assert exploration.best.reading.ratio == pytest.approx(min(table[key] for key in known))
    assert keys(exploration.fastest(), exploration) == sorted(known, key=lambda key: table[key])
    assert not exploration.converged
    if exploration.model is None:
        assert exploration.front() == []
    else:
        assert exploration.front()
    assert list(exploration) == []  # it does not go on


def test_the_predicted_front_runs_from_fast_to_insensitive() -> None:
    name, rules = "Attention", "onnxruntime"
    table = hidden(name, rules, seed=1)
    names = [group.name for group in assignments(name, rules).grouping.groups]

    def estimate(given: Assignments, uniform: Sequence[Choice]) -> Mapping[tuple[str, str], float]:
        return {(group, "w8a8"): 0.1 * (i + 1) for i, group in enumerate(names)}

    exploration = explored(Chip(every_choice(name, rules), table), name, rules, estimate=estimate)
    list(exploration)
    front = exploration.front()
    assert len(front) > 1
    assert [one.latency_ms for one in front] == sorted(one.latency_ms for one in front)
    assert [one.sensitivity for one in front] == sorted((one.sensitivity for one in front), reverse=True)
    assert set(front[-1].choice.values()) == {FLOAT}
    assert exploration.model is not None
    for one in front:
        assert one.latency_ms == pytest.approx(exploration.model.predict(one.choice), abs=0.01)
        assert one.sensitivity == pytest.approx(exploration.total_sensitivity(one.choice))
        # All of the front was measured while there was time.
        assert any(found.choice == one.choice for found in exploration.found.values()) or len(front) > 12
