"""OHQ: precisions for this very chip, by measurement, estimated sensitivity and an integer program."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.predictor import Inputs
from seatrial.core.quantizer import Quantizer
from seatrial.core.recipe import Recipe
from seatrial.core.search import Budget, CannotRun, Found, Meter, Reading, Search
from seatrial.core.sites import signature
from seatrial.quant.assignment import FLOAT, Assignments, Choice
from seatrial.quant.groups import Grouping, group_operators
from seatrial.quant.integer_program import Bounds, Cost, Edge, Problem, Solution, pareto, solve
from seatrial.quant.latency_model import Additivity, LatencyModel, Sample, additivity
from seatrial.quant.moves import Move, shared_moves, single_moves

OpenMeter = Callable[[Graph, Recipe, Recipe], AbstractContextManager[Meter]]
"""Makes a meter for a graph, a recipe with every site that may be rounded, and the recipe all are held against."""
Estimate = Callable[[Assignments, Sequence[Choice]], Mapping[tuple[str, str], float]]
"""Estimates the sensitivity of each (group, precision), given the uniform choices."""

_VALIDATED = 20
_FRONT = 12
_REPEATS = 4
_FLIPS, _REFINING, _PROGRAM, _POLISH = 0.45, 0.6, 0.75, 0.93
"""Shares of the time after which the table, its refinement and the integer program give way to the next step."""
_NEGLIGIBLE = 2e-4
"""Cost of a change of precision, as a share of the network's time, that the integer program leaves out."""
_TOO_NOISY = 0.1
"""Mean relative difference of repeats above which nothing is searched."""
_SETTLED, _LONG = 4, 32
"""How many of the fastest are measured again at the end, and in how many rounds."""


@dataclass(frozen=True)
class OHQ(Search):
    """On-chip hardware-aware quantization for a target on which groups run in `precisions` (the last is `float`).

    1. OQA: the uniform choices, and flips of operators of one shape, kind or block, timed in the whole network; a model
       of costs and of changes between precisions is fitted to them, and tested on 20 fresh choices that are spread from
       the fastest to the slowest. 2. MQE: `estimate` tells the sensitivity of each group. 3. An integer program gives
       choices, which are measured and improve the model. 4. Polish: flips that the model thinks well of, measured, kept
       where they are faster by more than the noise.

    Source: Huang et al. 2023 (arXiv 2309.01945). Departures: the paper times operators alone on an FPGA; on a CPU
    neighbors fuse, so everything is timed in place, with a term for changes of precision, and a measured local search
    has the last word.
    """

    quantizer: Quantizer
    rules: PlacementRules
    open_meter: OpenMeter
    precisions: tuple[str, ...] = ("w8a8", FLOAT)
    estimate: Estimate | None = None
    keep: tuple[str, ...] = ()
    """Globs of operators that stay float; see `seatrial.quant.placement.place`."""
    clock_s: Callable[[], float] = field(default=time.monotonic, repr=False)

    def run(
        self, graph: Graph, calibration: Sequence[Inputs], budget: Budget, *, rng: np.random.Generator
    ) -> Iterator[Found]:
        """Return the exploration, which measures as it is iterated."""
        return self.explore(graph, calibration, budget, rng=rng)

    def explore(
        self,
        graph: Graph,
        calibration: Sequence[Inputs],
        budget: Budget,
        *,
        rng: np.random.Generator,
        planned: Recipe | None = None,
    ) -> Exploration:
        """Return the exploration, from the uniform recipe `planned`, which the quantizer makes where it is None.

        Raises as the quantizer does.
        """
        start_s = self.clock_s()
        grouping = group_operators(graph, self.rules, keep=self.keep)
        if planned is not None:
            return Exploration(self, Assignments(graph, self.rules, grouping, planned), budget, rng, start_s)
        uniform = dict.fromkeys((group.name for group in grouping.groups), self.precisions[0])
        precision = Assignments(graph, self.rules, grouping, Recipe((), signature(graph))).precision(uniform)
        planned = self.quantizer.plan(graph, calibration, precision, rng=rng)
        return Exploration(self, Assignments(graph, self.rules, grouping, planned), budget, rng, start_s)


class Exploration(Iterator[Found]):
    """One search as it goes: iterate to measure on; what it knows so far can be read at any time."""

    def __init__(
        self, search: OHQ, assignments: Assignments, budget: Budget, rng: np.random.Generator, start_s: float
    ) -> None:
        self.search, self.assignments, self.budget, self.rng = search, assignments, budget, rng
        self.grouping: Grouping = assignments.grouping
        self.found: dict[tuple[str, ...], Found] = {}
        self.model: LatencyModel | None = None
        self.additivity: Additivity | None = None
        self.sensitivity: Mapping[tuple[str, str], float] = {}
        self.repeat_spread = 0.0
        self.notes: list[str] = []
        self._refused: set[tuple[str, ...]] = set()
        self.converged = False
        """Whether nothing was left to try before the time was over."""
        self._start_s = start_s
        self._names = tuple(group.name for group in self.grouping.groups)
        self._steps = self._run()

    def __next__(self) -> Found:
        return next(self._steps)

    @property
    def best(self) -> Found:
        """The fastest choice so far that keeps the budget's bounds, or of all where none does.

        Raises LookupError before anything was measured.
        """
        if not self.found:
            raise LookupError("nothing was measured yet")
        kept = [found for found in self.found.values() if self._keeps(found)]
        return min(kept or self.found.values(), key=lambda found: found.reading.ratio)

    def fastest(self) -> list[Found]:
        """Return what keeps the budget's bounds, the fastest first."""
        return sorted((one for one in self.found.values() if self._keeps(one)), key=lambda one: one.reading.ratio)

    @property
    def uniform(self) -> dict[str, Found]:
        """The uniform choices by precision."""
        return {key[0]: found for key, found in self.found.items() if len(set(key)) == 1}

    def problem(self) -> Problem:
        """Return the integer program of the present model, in ratios to the reference."""
        assert self.model is not None, "a problem needs a model"
        costs = {
            name: {
                precision: Cost(self.model.group_cost(name, precision), self._sensitivity_of(name, precision))
                for precision in self.search.precisions
            }
            for name in self._names
        }
        # What a fit leaves of an edge that costs nothing would only make the program harder.
        costly = (
            Edge(one, other, {pair: ratio for pair, ratio in told.items() if abs(ratio) > _NEGLIGIBLE})
            for one, other, told in self.model.edge_costs()
        )
        edges = tuple(edge for edge in costly if edge.latency_ms)
        return Problem(costs, edges, fixed_latency_ms=self.model.constant)

    def front(self, points: int = 16) -> list[Solution]:
        """Return the predicted front of latency and sensitivity; empty before the first fit."""
        return pareto(self.problem(), points=points) if self.model is not None else []

    def total_sensitivity(self, choice: Choice) -> float:
        """Return the sum of the estimates of a choice's groups."""
        return sum(self._sensitivity_of(name, choice[name]) for name in self._names)

    def seconds_left(self) -> float:
        """Return what is left of the budget."""
        return self.budget.seconds - (self.search.clock_s() - self._start_s)

    def _sensitivity_of(self, name: str, precision: str) -> float:
        return 0.0 if precision == FLOAT else self.sensitivity.get((name, precision), 0.0)

    def _keeps(self, found: Found) -> bool:
        bounds = (
            (self.budget.latency_ms, found.reading.latency_ms),
            (self.budget.size_bytes, found.reading.size_bytes),
            (self.budget.energy_mj, found.reading.energy_mj),
            (self.budget.sensitivity, found.sensitivity),
        )
        return all(most is None or (told is not None and told <= most) for most, told in bounds)

    def _over(self, share: float) -> bool:
        return self.seconds_left() < (1 - share) * self.budget.seconds

    def _run(self) -> Iterator[Found]:
        uniform = [dict.fromkeys(self._names, precision) for precision in self.search.precisions]
        if self.search.estimate is not None:
            self.sensitivity = self.search.estimate(self.assignments, uniform[:-1])
        moves, singles = shared_moves(self.grouping), single_moves(self.grouping)
        # Where a round stands depends on an operator's neighbors alone: single flips show every site.
        alone = [
            _flipped(start, move, other) for start in uniform for move in singles for other in self.search.precisions
        ]
        every = self.assignments.every_site([*uniform, *(choice for choice in alone if choice not in uniform)])
        reference = self.assignments.recipe(uniform[0])
        with self.search.open_meter(self.assignments.graph, every, reference) as meter:
            self._meter = meter
            yield from self._uniform(uniform)
            if self.repeat_spread > _TOO_NOISY:
                self.notes.append(
                    f"the machine is too noisy to search: repeats of one network differ by {self.repeat_spread:.0%}; "
                    "nothing is decided on smaller differences, so the uniform precisions stand alone"
                )
                return
            yield from self._flips(uniform, moves)
            self._fit()
            yield from self._validate()
            yield from self._program()
            yield from self._front()
            yield from self._polish(moves, singles)
            yield from self._settle()
        self.converged = self.seconds_left() > 0

    def _measure(self, choice: Choice, step: str, rounds: int | None = None) -> Found:
        """Measure a choice, or measure it on; raises CannotRun as the meter does."""
        key = self._key(choice)
        recipe = self.assignments.recipe(choice)
        (reading,) = self._meter.time([recipe], rounds=rounds)
        step = self.found[key].step if key in self.found else step
        self.found[key] = Found(dict(choice), recipe, reading, self.total_sensitivity(choice), step)
        return self.found[key]

    def _tried(self, choice: Choice, step: str) -> Iterator[Found]:
        """Measure a new choice; one that the target cannot run is noted, and not asked for again."""
        if self._is_new(choice):
            try:
                yield self._measure(choice, step)
            except CannotRun as error:
                self._refused.add(self._key(choice))
                rounded = [name for name, precision in choice.items() if precision != FLOAT]
                shown = ", ".join(rounded[:3]) + (f" and {len(rounded) - 3} more" if len(rounded) > 3 else "")
                self.notes.append(f"a choice with {shown} in integers cannot run, and was left out: {error}")

    def _key(self, choice: Choice) -> tuple[str, ...]:
        return tuple(choice[name] for name in self._names)

    def _is_new(self, choice: Choice) -> bool:
        return self._key(choice) not in self.found and self._key(choice) not in self._refused

    def _known(self, choice: Choice) -> Found | None:
        return self.found.get(self._key(choice))

    def _uniform(self, uniform: Sequence[Choice]) -> Iterator[Found]:
        """Measure the uniform choices, the first one several times: what repeats differ by is the noise."""
        told = []
        for turn in range(_REPEATS):
            told.append(self._measure(uniform[0], "uniform", rounds=(turn + 1) * 8).reading)
        ratios = _apart(told)
        self.repeat_spread = max(float(np.mean(np.abs(ratios - np.median(ratios)))), told[-1].error)
        yield self.found[self._key(uniform[0])]
        for choice in uniform[1:]:
            yield from self._tried(choice, "uniform")

    def _flips(self, uniform: Sequence[Choice], moves: Sequence[Move]) -> Iterator[Found]:
        """Flip each move from each uniform choice, the large ones first, until their share of the time is over."""
        for move in moves:
            for start in uniform:
                for precision in self.search.precisions:
                    if not self._over(_FLIPS):
                        yield from self._tried(_flipped(start, move, precision), "flip")

    def _fit(self) -> None:
        samples = [Sample(f.choice, f.reading.ratio, f.reading.error) for f in self.found.values()]
        self.model = LatencyModel.fit(self.grouping, self.search.precisions, samples)

    def _validate(self) -> Iterator[Found]:
        """Foretell fresh choices spread over the whole range, measure them, and take them into the model; again while
        the gate is missed and there is time."""
        assert self.model is not None
        while True:
            drawn = self._spread(_VALIDATED)
            foretold, measured = [], []
            for choice in drawn:
                if self.seconds_left() <= 0:
                    break
                for found in self._tried(choice, "validation"):
                    foretold.append(self.model.predict(choice))
                    measured.append(found.reading.ratio)
                    yield found
            if len(measured) > 2:
                self.additivity = additivity(foretold, measured, self.repeat_spread)
            self._fit()
            if len(measured) <= 2 or (self.additivity and self.additivity.trusted) or self._over(_REFINING):
                return

    def _spread(self, count: int) -> list[Choice]:
        """Draw choices whose foretold times are spread evenly from the fastest to the slowest."""
        assert self.model is not None
        pool: list[Choice] = []
        kinds = list(dict.fromkeys(group.shapes for group in self.grouping.groups))
        uniform = [found.choice for found in self.uniform.values()]
        fastest = solve(self.problem()).choice
        for _ in range(30 * count):
            # Mixed by kind of operator, by place, or freely, starting from each end: all kinds of mixtures occur.
            start = (*uniform, fastest)[self.rng.integers(len(uniform) + 1)]
            share = self.rng.random()
            precision = self.search.precisions[self.rng.integers(len(self.search.precisions))]
            if self.rng.random() < 0.5:
                flipped = {kind for kind in kinds if self.rng.random() < share}
                names = {group.name for group in self.grouping.groups if group.shapes in flipped}
            else:
                names = {name for name in self._names if self.rng.random() < share}
            choice = _flipped(start, frozenset(names), precision)
            if self._is_new(choice) and choice not in pool:
                pool.append(choice)
        if len(pool) <= count:
            return pool
        told = np.asarray([self.model.predict(choice) for choice in pool])
        chosen: list[int] = []
        for level in np.linspace(told.min(), told.max(), count):
            nearest = np.argsort(np.abs(told - level))
            fresh = [int(at) for at in nearest if at not in chosen]
            chosen.append(fresh[0])
        return [pool[at] for at in chosen]

    def _program(self) -> Iterator[Found]:
        """Measure what the integer program proposes, and let the model learn from it, until it proposes nothing new."""
        bounds = Bounds(sensitivity=self.budget.sensitivity)
        while not self._over(_PROGRAM):
            choice = solve(self.problem(), bounds).choice
            if not self._is_new(choice):
                break
            yield from self._tried(choice, "program")
            self._fit()

    def _front(self) -> Iterator[Found]:
        """Measure the choices of the predicted front, so that a slower but more accurate one is known too."""
        for solution in self.front(_FRONT):
            if not self._over(_PROGRAM):
                yield from self._tried(solution.choice, "program")
        self._fit()

    def _polish(self, moves: Sequence[Move], singles: Sequence[Move]) -> Iterator[Found]:
        """Flip one move after another from the best choice, best foretold first, and keep what is surely faster."""
        while not self._over(_POLISH):
            base = self.best
            options = [
                choice
                for move in (*moves, *singles)
                for precision in self.search.precisions
                if self._is_new(choice := _flipped(base.choice, move, precision))
            ]
            assert self.model is not None
            told = [self.model.predict(choice) for choice in options]
            if not options or min(told) > self.model.predict(base.choice) + 0.02:
                return
            choice = options[int(np.argmin(told))]
            for new in self._tried(choice, "polish"):
                yield new
                if new.reading.ratio < base.reading.ratio:  # looked at again before it is believed
                    for again in (base.choice, choice):
                        yield self._measure(again, "polish", rounds=24)
            self._fit()

    def _settle(self) -> Iterator[Found]:
        """Measure the fastest choices again, longer: the fastest of many readings is partly the luckiest."""
        for one in self.fastest()[:_SETTLED]:
            if self.seconds_left() > 0:
                yield self._measure(one.choice, one.step, rounds=_LONG)


def _flipped(start: Choice, move: Move, precision: str) -> dict[str, str]:
    return {name: precision if name in move else chosen for name, chosen in start.items()}


def _apart(told: Sequence[Reading]) -> np.ndarray:
    """Return the ratios of repeats from readings that were merged one into the other."""
    ratios, rounds, total = [], 0, 0.0
    for reading in told:
        fresh = reading.rounds - rounds
        if fresh > 0:
            ratios.append((reading.ratio * reading.rounds - total) / fresh)
        rounds, total = reading.rounds, reading.ratio * reading.rounds
    return np.asarray(ratios)
