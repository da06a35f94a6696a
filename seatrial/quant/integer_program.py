"""One precision for each group of operators, so that a cost is least within bounds: the integer program of OHQ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from seatrial.errors import BadInput, SeatrialError, unknown_name
from seatrial.quant.pareto_front import (
    FIELDS,
    NO_BOUNDS,
    QUANTITIES,
    Bounds,
    Limits,
    Pair,
    Quantity,
    Solution,
    Weights,
    front,
    unreachable,
)
from seatrial.quant.reduced_program import minimized

_TOLERANCE = 1e-6  # HiGHS's own, absolute, for feasibility and for the gap
_SCALE = 1e5  # the largest coefficient of objective and bounds, which makes it 1e-11 of what they can spare
_ROUNDING = 1e-12
_MOST_CUTS = 32

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Cost:
    """What one group of operators costs in one precision; `energy_mj` is None where nothing counts energy."""

    latency_ms: float
    sensitivity: float
    size_bytes: float = 0.0
    energy_mj: float | None = None


@dataclass(frozen=True)
class Edge:
    """What group `one` in precision p and group `other` in q cost together: extra ms for (p, q), 0 where left out."""

    one: str
    other: str
    latency_ms: Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Problem:
    """The table to choose from: group -> precision -> cost, with what neighbors add and who must agree.

    The groups of a tie take one and the same precision (residual additions, concatenations). Raises ValueError for no
    group, a group without precisions, unknown groups or precisions in edges and ties, and numbers that are not finite.
    """

    costs: Mapping[str, Mapping[str, Cost]]
    edges: tuple[Edge, ...] = ()
    ties: tuple[frozenset[str], ...] = ()
    fixed_latency_ms: float = 0.0
    """Milliseconds that no choice changes."""

    def __post_init__(self) -> None:
        if not self.costs or not all(self.costs.values()):
            raise ValueError("every problem has a group, and every group a precision to choose")
        for group in (*(end for e in self.edges for end in (e.one, e.other)), *(g for tie in self.ties for g in tie)):
            if group not in self.costs:
                raise ValueError(f"an edge or tie names '{group}', which is no group of the table")
        for e in self.edges:
            for p, q in e.latency_ms:
                if p not in self.costs[e.one] or q not in self.costs[e.other]:
                    raise ValueError(f"the edge from '{e.one}' to '{e.other}' names ({p}, {q}), which is no choice")
        costs = [getattr(c, name) for row in self.costs.values() for c in row.values() for name in FIELDS.values()]
        numbers = [self.fixed_latency_ms, *costs, *(ms for e in self.edges for ms in e.latency_ms.values())]
        if not all(math.isfinite(number) for number in numbers if number is not None):
            raise ValueError("every cost must be a finite number")

    def solution(self, choice: Mapping[str, str]) -> Solution:
        """Return the sums of any choice of one precision for each group, correctly rounded; bounds play no part."""
        chosen = [row[choice[group]] for group, row in self.costs.items()]
        edges = [e.latency_ms.get((choice[e.one], choice[e.other]), 0.0) for e in self.edges]
        energies = [cost.energy_mj for cost in chosen if cost.energy_mj is not None]
        return Solution(
            {group: choice[group] for group in self.costs},
            math.fsum([self.fixed_latency_ms, *edges, *(cost.latency_ms for cost in chosen)]),
            math.fsum(cost.sensitivity for cost in chosen),
            math.fsum(cost.size_bytes for cost in chosen),
            math.fsum(energies) if len(energies) == len(chosen) else None,
        )


def solve(problem: Problem, bounds: Bounds = NO_BOUNDS, *, minimize: Quantity | Weights = "latency") -> Solution:
    """Return the choice with the least sum of one quantity, or of weighted normalized costs, within the bounds.

    Weights ask for min sum (alpha S^ + beta L^ + gamma E^), each cost min-max normalized over all groups and
    precisions. Bounds hold exactly on the sums of the result; the objective is least to 1e-9. Raises BadInput where no
    choice meets the bounds, where tied groups have no precision in common, and where energy is asked for but unknown.

    Source: OHQ, Huang et al. 2023, arXiv 2309.01945 (weights); HAWQ-V3, Yao et al. 2021, arXiv 2011.10680 (bounds).
    Departures: costs between neighbors (with weights divided by the same span), ties over whole groups, a weight for
    the size. Among sums within 1e-10 of a bound, at most 32 that exceed it are told from those that meet it.
    """
    if not isinstance(minimize, Weights) and minimize not in QUANTITIES:
        raise unknown_name("objective", minimize, QUANTITIES)
    program, limits = Program(problem), bounds.limits()
    found = program.best(minimize, limits)
    if found is None:
        raise unreachable(program.best, limits)
    return found


def pareto(
    problem: Problem, bounds: Bounds = NO_BOUNDS, *, points: int = 32, of: Pair = ("latency", "sensitivity")
) -> list[Solution]:
    """Return up to `points` choices that no other beats in two sums, all within the bounds, sorted by the first sum.

    Both ends are there: the fastest, among those the least sensitive, and the reverse. Points that differ by less than
    1e-9 are one. Raises BadInput as `solve` does.

    Source: the epsilon-constraint method, Haimes et al. 1971, with the bounds of HAWQ-V3.
    Departures: bounds halve the largest gap instead of even steps.
    """
    return front(Program(problem).best, bounds.limits(), points, of)


@dataclass(frozen=True)
class _Linear:
    """A sum over choices and over pairs of neighbors: `single` for each choice, `pair` times the cost of each pair."""

    single: Numbers
    pair: float
    limit: float = math.inf


@dataclass(frozen=True)
class _Pairs:
    """The pairs of choices of all edges, one after the other, and the rows that couple them to single choices."""

    ends: Indices  # [2, pairs], the choices
    rows: Indices  # [2, pairs], the coupling rows
    row_choice: Indices
    extra: Numbers


@final
class Program:
    """The integer program of a problem, to be solved for several objectives and bounds.

    Tied groups are one node. Every edge has the full local polytope, z[p, q] >= 0 with sum_q z[p, q] = x[p] and
    sum_p z[p, q] = y[q], so that costs of any sign are exact. What single choices can carry of an edge's costs is
    moved to them first; edges of which nothing is left need no variables.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.nodes, self.names = _merged(problem)
        sizes = np.array([len(names) for names in self.names])
        self.start = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        self.node_of = np.repeat(np.arange(len(sizes)), sizes)
        self.costs: dict[Quantity, Numbers] = {q: self._summed(FIELDS[q]) for q in QUANTITIES}
        self.pairs = self._coupled()

    def best(self, minimize: Quantity | Weights, limits: Limits) -> Solution | None:
        """Return the choice with the least objective whose sums meet the limits exactly, None where there is none."""
        weighted = isinstance(minimize, Weights)
        asked = minimize.energy if weighted else minimize == "energy"
        if (asked or "energy" in limits) and np.isnan(self.costs["energy"]).any():
            came = f"--max-energy-mj {limits['energy']:g}" if "energy" in limits else "an objective that counts energy"
            raise BadInput(came, "the energy of every choice", "leave it out: this machine counts no energy")
        objective = self._weighted(minimize) if weighted else _Linear(self.costs[minimize], minimize == "latency")
        fixed: dict[Quantity, float] = {"latency": self.problem.fixed_latency_ms}
        rows = [_Linear(self.costs[q], q == "latency", v - fixed.get(q, 0.0)) for q, v in limits.items()]
        cuts: list[Indices] = []
        safe: tuple[float, Solution] | None = None
        for attempt in range(_MOST_CUTS):
            chosen = self._least(objective, rows, cuts, 0.0)
            if chosen is None:
                return safe[1] if safe else None
            if safe and safe[0] <= (value := self._value(objective, chosen)) + _ROUNDING * abs(value):
                return safe[1]
            if (solution := self._solution(chosen)).meets(limits):
                return solution
            # HiGHS lets a hair through: forbid this very choice, which loses none that meets the limits.
            cuts.append(chosen)
            if attempt == 0:
                inner = self._least(objective, rows, cuts, 3 * _TOLERANCE)
                if inner is not None and (within := self._solution(inner)).meets(limits):
                    safe = self._value(objective, inner), within
        if safe is None:
            raise SeatrialError("many sums lie closer above a bound than the solver resolves; move it by a billionth")
        return safe[1]

    def _summed(self, name: str) -> Numbers:
        choices = [(groups, precision) for groups, names in zip(self.nodes, self.names) for precision in names]
        values = [[getattr(self.problem.costs[group][p], name) for group in groups] for groups, p in choices]
        return np.array([math.nan if None in of_one else math.fsum(of_one) for of_one in values])

    def _coupled(self) -> _Pairs:
        node = {group: i for i, groups in enumerate(self.nodes) for group in groups}
        tables: dict[tuple[int, int], Numbers] = {}
        latency = self.costs["latency"]
        for e in self.problem.edges:
            a, b = node[e.one], node[e.other]
            table = np.array([[e.latency_ms.get((p, q), 0.0) for q in self.names[b]] for p in self.names[a]])
            if a == b:
                latency[self.node_of == a] += np.diag(table)
            else:
                key, table = ((a, b), table) if a < b else ((b, a), table.T)
                tables[key] = tables.get(key, 0.0) + table
        ends, rows, row_choice, extra, count = [], [], [], [], 0
        for (a, b), table in tables.items():
            least = _ROUNDING * np.abs(table).max()
            for node_index, axis in ((a, 1), (b, 0)):
                lowest = table.min(axis, keepdims=True)
                latency[self.node_of == node_index] += lowest.ravel()
                table = table - lowest
            if table.max() <= least:
                continue
            one, other = np.indices(table.shape).reshape(2, -1)
            ends.append(np.stack([self.start[a] + one, self.start[b] + other]))
            rows.append(np.stack([count + one, count + len(table) + other]))
            row_choice += [self.start[a] + np.arange(len(table)), self.start[b] + np.arange(table.shape[1])]
            extra.append(np.where(table <= least, 0.0, table).ravel())
            count += sum(table.shape)
        none, no_extra = np.zeros((2, 0), np.int64), np.zeros(0)
        joined = np.concatenate([none, *ends], 1), np.concatenate([none, *rows], 1)
        return _Pairs(*joined, np.concatenate([none[0], *row_choice]), np.concatenate([no_extra, *extra]))

    def _weighted(self, weights: Weights) -> _Linear:
        single, pair = np.zeros(len(self.node_of)), 0.0
        weighed: list[Quantity] = [quantity for quantity in QUANTITIES if getattr(weights, quantity) > 0]
        for quantity in weighed:
            costs = [cost for row in self.problem.costs.values() for cost in row.values()]
            values = [getattr(cost, FIELDS[quantity]) for cost in costs]
            span = max(values) - min(values)
            if span == 0 and quantity == "latency":
                # Only neighbors tell the choices apart.
                span = max((abs(ms) for e in self.problem.edges for ms in e.latency_ms.values()), default=0.0)
            if span > 0:
                # The least of all is a constant: each group pays it once.
                scale = getattr(weights, quantity) / span
                single += scale * self.costs[quantity]
                pair += scale * (quantity == "latency")
        return _Linear(single, pair)

    def _solution(self, chosen: Indices) -> Solution:
        picked = [names[i] for names, i in zip(self.names, (chosen - self.start).tolist())]
        return self.problem.solution({g: name for groups, name in zip(self.nodes, picked) for g in groups})

    def _value(self, linear: _Linear, chosen: Indices) -> float:
        taken = np.zeros(len(self.node_of), np.bool_)
        taken[chosen] = True
        extra = self.pairs.extra[taken[self.pairs.ends].all(0)]
        return math.fsum([*linear.single[chosen].tolist(), *(linear.pair * extra).tolist()])

    def _lowest(self, single: Numbers, alive: Mask) -> Numbers:
        """Return the least of each node's living choices."""
        return np.minimum.reduceat(np.where(alive, single, np.inf), self.start)

    def _alive(self, rows: Iterable[_Linear]) -> Mask | None:
        """Return the choices that can still meet every row, None where a node has none: its own least is too much."""
        alive = np.ones(len(self.node_of), np.bool_)
        while True:
            before = alive.sum()
            for row in rows:
                lowest = self._lowest(row.single, alive)
                slack = row.limit - math.fsum(lowest) + _ROUNDING * (np.abs(lowest).sum() + abs(row.limit))
                alive &= row.single - lowest[self.node_of] <= slack
                if not np.logical_or.reduceat(alive, self.start).all():
                    return None
            if alive.sum() == before:
                return alive

    def _least(self, objective: _Linear, rows: list[_Linear], cuts: list[Indices], hair: float) -> Indices | None:
        alive, found = self._alive(rows), None
        while alive is not None:
            better, unit = self._solved(objective, rows, cuts, hair, alive)
            if better is None:
                return found
            found, value = better, self._value(objective, better)
            # A value that is small beside the range: drop what costs more, and look again on the finer scale.
            fewer = self._alive([*rows, _Linear(objective.single, objective.pair, value)])
            if _TOLERANCE * unit <= 5e-10 * abs(value) or fewer is None or fewer.sum() == alive.sum():
                return found
            alive = fewer
        return found

    def _solved(
        self, objective: _Linear, rows: list[_Linear], cuts: list[Indices], hair: float, alive: Mask
    ) -> tuple[Indices | None, float]:
        """Return the least choice among those alive, and the unit in which the objective was solved."""
        pairs, column, node = self.pairs, np.flatnonzero(alive), self.node_of[alive]
        kept = alive[pairs.ends].all(0)
        lines, right = list[Numbers](), list[float]()
        for row in rows:
            lowest = self._lowest(row.single, alive)
            slack = row.limit - math.fsum(lowest)
            # Never so fine that the rounding of the sums themselves shows.
            unit = max(slack / _SCALE, 1e-8 * (np.abs(lowest).sum() + abs(row.limit)), 1e-300)
            kept &= row.pair * pairs.extra <= 2 * unit * _SCALE
            lines.append((np.append(row.single - lowest[self.node_of], row.pair * pairs.extra)) / unit)
            right.append(slack / unit + _TOLERANCE / 10 - hair)
        for cut in cuts:
            lines.append(np.isin(np.arange(alive.size + kept.size), cut).astype(float))
            right.append(len(cut) - 1.0)
        taken = np.append(alive, kept)
        most = sparse.csc_array(np.array(lines).reshape(len(lines), taken.size)[:, taken])
        single = objective.single - self._lowest(objective.single, alive)[self.node_of]
        cost = np.append(single, objective.pair * pairs.extra)[taken]
        unit = (cost.max() or 1.0) / _SCALE
        row_alive = alive[pairs.row_choice]
        coupling = (np.cumsum(row_alive) - 1)[pairs.rows[:, kept]]
        x, z, m = len(column), kept.sum(), row_alive.sum()
        left = np.repeat([1.0, 0.0], [len(self.nodes), m])
        entries = np.concatenate([np.ones(x + 2 * z), -np.ones(m)])
        at = np.concatenate([node, len(self.nodes) + np.append(coupling, np.arange(m))])
        columns = [np.arange(x), np.tile(x + np.arange(z), 2), (np.cumsum(alive) - 1)[pairs.row_choice[row_alive]]]
        equal = sparse.csc_array((entries, (at, np.concatenate(columns))), shape=(left.size, x + z))
        picked = minimized(cost / unit, equal, left, most, np.array(right), coupling, x)
        if picked is None:
            return None, unit
        chosen = np.zeros(len(self.nodes), np.int64)
        chosen[node[picked > 0.5]] = column[picked > 0.5]
        return chosen, unit


def _merged(problem: Problem) -> tuple[list[list[str]], list[list[str]]]:
    """Return the groups of each node, tied ones together, and the precisions that all of them have."""
    together = {group: [group] for group in problem.costs}
    for tie in problem.ties:
        union = [group for group in problem.costs if any(group in together[member] for member in tie)]
        together |= dict.fromkeys(union, union)
    nodes = [list(part) for part in dict.fromkeys(tuple(together[group]) for group in problem.costs)]
    names = [[p for p in problem.costs[node[0]] if all(p in problem.costs[g] for g in node)] for node in nodes]
    for node, shared in zip(nodes, names):
        if not shared:
            shown = ", ".join(f"{group}: {'/'.join(problem.costs[group])}" for group in node)
            came = f"tied groups without a common precision ({shown})"
            raise BadInput(came, "one that all of them have", "allow more precisions for them")
    return nodes, names
