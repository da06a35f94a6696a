"""The integer program of precisions against every assignment there is, summed in fractions."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.errors import BadInput
from seatrial.quant.integer_program import Cost, Edge, Problem, pareto, solve
from seatrial.quant.pareto_front import Bounds, Quantity, Solution, Weights

NAMES = ("float32", "bf16", "w8a8", "w4a4")
PLAIN: tuple[Quantity, ...] = ("latency", "sensitivity", "size")
# Decimals whose binary sums depend on how they are added, and numbers far apart.
MS = st.one_of(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.6, 0.7]), st.floats(1e-3, 50.0))
SENSITIVITY = st.one_of(st.sampled_from([0.0, 0.1, 0.2, 0.3]), st.floats(1e-8, 1e-6), st.floats(1e-3, 10.0))
EDGE_MS = st.one_of(st.sampled_from([0.0, 0.1, -0.1]), st.floats(-3.0, 3.0))


@st.composite
def problems(draw: st.DrawFn, most_groups: int = 6) -> Problem:
    groups = [f"g{i}" for i in range(draw(st.integers(1, most_groups)))]
    cost = st.builds(Cost, MS, SENSITIVITY, st.integers(0, 10**7).map(float), st.floats(0.01, 9.0))
    costs = {}
    for group in groups:
        names = draw(st.lists(st.sampled_from(NAMES[1:]), unique=True, max_size=3))
        # All have the first one, so every tie has a precision in common.
        costs[group] = {name: draw(cost) for name in (NAMES[0], *names)}
    edges = []
    for _ in range(draw(st.integers(0, 2 * len(groups) - 2))):
        one, other = draw(st.sampled_from(groups)), draw(st.sampled_from(groups))
        pairs = draw(st.lists(st.tuples(st.sampled_from(list(costs[one])), st.sampled_from(list(costs[other])))))
        edges.append(Edge(one, other, {pair: draw(EDGE_MS) for pair in pairs}))
    ties = draw(st.lists(st.frozensets(st.sampled_from(groups), min_size=1, max_size=3), max_size=2))
    return Problem(costs, tuple(edges), tuple(ties), draw(st.sampled_from([0.0, 0.1, 5.0])))


Sums = dict[str, float]


def everything(problem: Problem) -> list[tuple[dict[str, str], Sums]]:
    """Every assignment that keeps the ties, with its sums correctly rounded."""
    found = []
    for names in product(*problem.costs.values()):
        choice = dict(zip(problem.costs, names))
        if any(len({choice[group] for group in tie}) > 1 for tie in problem.ties):
            continue
        costs = [problem.costs[group][name] for group, name in choice.items()]
        latency = Fraction(problem.fixed_latency_ms) + sum(Fraction(cost.latency_ms) for cost in costs)
        latency += sum(Fraction(e.latency_ms.get((choice[e.one], choice[e.other]), 0.0)) for e in problem.edges)
        sums = {
            "latency": float(latency),
            "sensitivity": float(sum(Fraction(cost.sensitivity) for cost in costs)),
            "size": float(sum(Fraction(cost.size_bytes) for cost in costs)),
            "energy": float(sum(Fraction(cost.energy_mj or 0.0) for cost in costs)),
        }
        found.append((choice, sums))
    return found


def sums_of(solution: Solution) -> Sums:
    return {quantity: solution.value(quantity) for quantity in (*PLAIN, "energy")}


def weighted(problem: Problem, weights: Weights, choice: dict[str, str]) -> float:
    """The objective of the paper, written out."""
    total = 0.0
    for quantity, name in (("latency", "latency_ms"), ("sensitivity",) * 2, ("size", "size_bytes")):
        values = [getattr(cost, name) for row in problem.costs.values() for cost in row.values()]
        low, span = min(values), max(values) - min(values)
        weight = getattr(weights, quantity)
        if span:
            chosen = sum((getattr(problem.costs[group][p], name) - low) / span for group, p in choice.items())
            total += weight * chosen
        if quantity == "latency":
            between = [e.latency_ms.get((choice[e.one], choice[e.other]), 0.0) for e in problem.edges]
            widest = max((abs(ms) for e in problem.edges for ms in e.latency_ms.values()), default=0.0)
            total += weight * sum(between) / (span or widest or 1.0)
    return total


@st.composite
def bounded(draw: st.DrawFn) -> tuple[Problem, list[tuple[dict[str, str], Sums]], Bounds]:
    """A problem, its assignments, and bounds near, at and below the sums of one of them."""
    problem = draw(problems())
    found = everything(problem)
    _, sums = found[draw(st.integers(0, len(found) - 1))]
    factor = st.sampled_from([None, None, 1.0, 1.0, 1.05, 0.95, 0.5, math.inf])

    def bound(quantity: str) -> float | None:
        scale = draw(factor)
        return scale if scale in (None, math.inf) else sums[quantity] * scale

    return problem, found, Bounds(bound("latency"), bound("size"), bound("energy"), bound("sensitivity"))


@settings(deadline=None, max_examples=150, derandomize=True)
@given(bounded(), st.sampled_from([*PLAIN, "energy"]))
def test_solve_finds_what_trying_everything_finds(
    case: tuple[Problem, list[tuple[dict[str, str], Sums]], Bounds], quantity: Quantity
) -> None:
    problem, found, bounds = case
    limits = bounds.limits()
    possible = [sums[quantity] for _, sums in found if all(sums[name] <= limit for name, limit in limits.items())]
    if not possible:
        with pytest.raises(BadInput, match="--max-"):
            solve(problem, bounds, minimize=quantity)
        return
    solution = solve(problem, bounds, minimize=quantity)
    assert (dict(solution.choice), sums_of(solution)) in found
    assert solution.meets(limits)
    assert solution.value(quantity) == pytest.approx(min(possible), rel=1e-9, abs=1e-15)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(bounded(), st.tuples(*[st.sampled_from([0.0, 0.3, 1.0])] * 3).filter(any))
def test_weights_find_the_least_normalized_sum(
    case: tuple[Problem, list[tuple[dict[str, str], Sums]], Bounds], values: tuple[float, float, float]
) -> None:
    problem, found, bounds = case
    weights, limits = Weights(values[0], values[1], size=values[2]), bounds.limits()
    possible = [choice for choice, sums in found if all(sums[name] <= limit for name, limit in limits.items())]
    if possible:
        got = weighted(problem, weights, dict(solve(problem, bounds, minimize=weights).choice))
        assert got == pytest.approx(min(weighted(problem, weights, choice) for choice in possible), rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(problems(most_groups=4), st.sampled_from([(a, b) for a in PLAIN for b in PLAIN if a != b]))
def test_pareto_is_the_front_of_trying_everything(problem: Problem, of: tuple[Quantity, Quantity]) -> None:
    every = sorted({(sums[of[0]], sums[of[1]]) for _, sums in everything(problem)})
    front, least = [], math.inf
    for one, other in every:
        if other < least:
            front.append((one, other))
            least = other
    # The stated resolution: points nearer than that on an axis are one.
    near = [2e-9 * max(abs(point[axis]) for point in front) for axis in (0, 1)]
    got = [(solution.value(of[0]), solution.value(of[1])) for solution in pareto(problem, points=500, of=of)]
    assert got == sorted(set(got))
    assert got[0][0] == pytest.approx(front[0][0], rel=1e-9, abs=1e-15)
    assert got[-1][1] == pytest.approx(front[-1][1], rel=1e-9, abs=1e-15)
    for one, other in got:
        assert not [p for p in every if p[0] < one - near[0] and p[1] <= other]
        assert not [p for p in every if p[0] <= one and p[1] < other - near[1]]
    for one, other in front:
        assert any(own[0] <= one + near[0] and own[1] <= other + near[1] for own in got), (one, other)


def large(edges: str, seed: int = 0) -> Problem:
    """200 groups in 5 precisions: less latency means more sensitivity; neighbors that differ pay for the change."""
    rng, groups, names = np.random.default_rng(seed), 200, ("a", "b", "c", "d", "e")
    base = rng.lognormal(0, 1, groups)[:, None]
    ms = base * np.sort(rng.uniform(0.2, 1, (groups, 5)), 1)[:, ::-1]
    lost = rng.lognormal(-4, 2, groups)[:, None] * 4.0 ** np.arange(5) * rng.uniform(0.5, 1.5, (groups, 5))
    ends = [(i, i + 1) for i in range(groups - 1)]
    if edges == "random":
        ends = [tuple(rng.choice(groups, 2, replace=False).tolist()) for _ in range(400)]
    pairs = [(p, q) for p in names for q in names if p != q]
    return Problem(
        {
            f"g{i}": {name: Cost(float(ms[i, j]), float(lost[i, j])) for j, name in enumerate(names)}
            for i in range(groups)
        },
        tuple(
            Edge(f"g{a}", f"g{b}", dict(zip(pairs, rng.uniform(0, 0.05 * ms.mean(), len(pairs)).tolist())))
            for a, b in ends
        ),
    )


def chain_bound(problem: Problem, price: float, limit_ms: float) -> float:
    """A lower bound on the sensitivity of a chain: its shortest path with latency at a price (Lagrange)."""
    rows = list(problem.costs.values())
    best = {name: cost.sensitivity + price * cost.latency_ms for name, cost in rows[0].items()}
    for row, edge in zip(rows[1:], problem.edges):
        best = {
            q: cost.sensitivity
            + price * cost.latency_ms
            + min(value + price * edge.latency_ms.get((p, q), 0.0) for p, value in best.items())
            for q, cost in row.items()
        }
    return min(best.values()) - price * limit_ms


@pytest.mark.parametrize("edges", ["chain", "random"])
def test_large_problems_have_an_optimum(edges: str) -> None:
    problem = large(edges)
    fastest, least = solve(problem), solve(problem, minimize="sensitivity")
    limit_ms = (fastest.latency_ms + least.latency_ms) / 2
    found = solve(problem, Bounds(latency_ms=limit_ms), minimize="sensitivity")
    assert found.latency_ms <= limit_ms
    assert least.sensitivity < found.sensitivity < fastest.sensitivity
    assert problem.solution(found.choice) == found
    for group, row in problem.costs.items():
        for name in row:
            other = problem.solution({**found.choice, group: name})
            assert other.latency_ms > limit_ms or other.sensitivity >= found.sensitivity
    if edges == "chain":
        bound = max(chain_bound(problem, price, limit_ms) for price in np.linspace(0, 2, 81).tolist())
        assert 0.95 * found.sensitivity <= bound <= found.sensitivity


TWO = {"float32": Cost(4.0, 0.0, 8.0), "w8a8": Cost(1.0, 0.5, 2.0)}
PAIR = Problem({"one": TWO, "other": TWO}, fixed_latency_ms=0.125)


def test_hand_made() -> None:
    """Two groups that convert between them for 1 ms: (w8a8, float32) costs 1 + 4 + 1 + 0.125 ms."""
    edge = Edge("one", "other", {("w8a8", "float32"): 1.0, ("float32", "w8a8"): -2.0})
    problem = Problem(PAIR.costs, (edge,), fixed_latency_ms=0.125)
    assert solve(problem).latency_ms == 2.125
    assert problem.solution({"one": "w8a8", "other": "float32"}).latency_ms == 6.125
    found = solve(problem, Bounds(sensitivity=0.5))
    assert found == Solution({"one": "float32", "other": "w8a8"}, 3.125, 0.5, 10.0, None)
    assert [point.latency_ms for point in pareto(problem)] == [2.125, 3.125, 8.125]
    assert len(pareto(problem, points=2)) == 2
    assert pareto(problem, Bounds(latency_ms=3.125))[-1] == found
    tied = Problem(PAIR.costs, (edge,), (frozenset({"one", "other"}),), 0.125)
    assert solve(tied, Bounds(sensitivity=0.5)).latency_ms == 8.125


def test_bounds_hold_to_the_last_bit() -> None:
    """0.1 + 0.2 is more than 0.3 in binary, by less than the solver sees."""
    problem = Problem({name: {"on": Cost(ms, 0.0), "off": Cost(0.0, 1.0)} for name, ms in (("a", 0.1), ("b", 0.2))})
    assert solve(problem, Bounds(latency_ms=0.3), minimize="sensitivity").sensitivity == 1.0
    assert solve(problem, Bounds(latency_ms=0.1 + 0.2), minimize="sensitivity").sensitivity == 0.0


def test_small_values_beside_large_ones() -> None:
    tiny = {"good": Cost(1.0, 3e-8), "better": Cost(2.0, 3e-8 * (1 - 1e-6)), "bad": Cost(0.5, 10.0)}
    problem = Problem({f"g{i}": tiny for i in range(9)})
    assert set(solve(problem, minimize="sensitivity").choice.values()) == {"better"}
    found = solve(problem, Bounds(latency_ms=14.0), minimize="sensitivity")
    assert sorted(found.choice.values()).count("better") == 5


def test_values_travel() -> None:
    solution = solve(PAIR)
    assert pickle.loads(pickle.dumps((PAIR, solution))) == (PAIR, solution)
    assert {type(solution.latency_ms), type(solution.sensitivity), type(solution.size_bytes)} == {float}


@pytest.mark.parametrize(
    ("bounds", "came", "wanted"),
    [
        (Bounds(latency_ms=1.2), "--max-latency-ms 1.2", "at least 2.125, the fastest that these precisions reach"),
        (Bounds(sensitivity=-1.0), "--max-sensitivity -1", "at least 0, the least sensitive"),
        (Bounds(size_bytes=3.0), "--max-size-bytes 3", "at least 4, the smallest"),
        (
            Bounds(latency_ms=1.2, sensitivity=0.5),
            "--max-latency-ms 1.2",
            "at least 5.125, the fastest that these precisions reach with --max-sensitivity 0.5",
        ),
        (
            Bounds(latency_ms=2.5, sensitivity=0.25),
            "--max-latency-ms 2.5 with --max-sensitivity 0.25",
            "each can be met alone, but not all together",
        ),
    ],
)
def test_the_message_says_what_can_be_reached(bounds: Bounds, came: str, wanted: str) -> None:
    for ask in (solve, pareto):
        with pytest.raises(BadInput) as error:
            ask(PAIR, bounds)
        assert error.value.came == came
        assert wanted in error.value.wanted


def test_the_value_in_the_message_is_enough() -> None:
    problem = Problem({f"g{i}": {"p": Cost(1 / 3, 0.1), "q": Cost(1 / 7, 0.7)} for i in range(5)})
    with pytest.raises(BadInput) as error:
        solve(problem, Bounds(latency_ms=0.5))
    assert error.value.wanted.startswith("at least 0.7143,")
    assert solve(problem, Bounds(latency_ms=0.7143)).latency_ms == pytest.approx(5 / 7)
    with pytest.raises(BadInput, match=r"raise --max-latency-ms to 3\.125 or --max-sensitivity to 1"):
        solve(
            Problem(PAIR.costs, (Edge("one", "other", {("float32", "w8a8"): -2.0}),), fixed_latency_ms=0.125),
            Bounds(latency_ms=2.5, sensitivity=0.75),
        )


def test_energy_must_be_counted() -> None:
    for ask in (
        lambda: solve(PAIR, Bounds(energy_mj=5.0)),
        lambda: solve(PAIR, minimize="energy"),
        lambda: solve(PAIR, minimize=Weights(1.0, 1.0, energy=0.5)),
        lambda: pareto(PAIR, of=("latency", "energy")),
    ):
        with pytest.raises(BadInput, match="this machine counts no energy"):
            ask()
    assert solve(PAIR, minimize=Weights(1.0, 1.0)).energy_mj is None
    counted = Problem({"g": {"p": Cost(1.0, 0.0, 0.0, 4.0), "q": Cost(2.0, 0.0, 0.0, 3.0)}})
    assert solve(counted, minimize="energy").energy_mj == 3.0
    assert solve(counted, Bounds(energy_mj=3.5)).choice == {"g": "q"}
    assert solve(counted, minimize=Weights(0.4, 0.0, energy=0.6)).choice == {"g": "q"}
    assert solve(counted, minimize=Weights(0.6, 0.0, energy=0.4)).choice == {"g": "p"}


def test_bad_input() -> None:
    apart = Problem({"a": {"p": Cost(1, 1)}, "b": {"q": Cost(1, 1)}}, ties=(frozenset({"a", "b"}),))
    with pytest.raises(BadInput, match=r"tied groups without a common precision \(a: p, b: q\)"):
        solve(apart)
    with pytest.raises(BadInput, match="did you mean 'latency'"):
        solve(PAIR, minimize="latencies")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="unknown sum 'speed'"):
        pareto(PAIR, of=("latency", "speed"))  # pyright: ignore[reportArgumentType]
    for points, of in ((1, ("latency", "size")), (3, ("latency", "latency"))):
        with pytest.raises(BadInput, match="at least 2 points of two sums"):
            pareto(PAIR, points=points, of=of)  # pyright: ignore[reportArgumentType]
    for value in (math.nan, -math.inf):
        with pytest.raises(BadInput, match="--max-latency-ms"):
            Bounds(latency_ms=value)
    for weights in ((0.0, 0.0), (-1.0, 2.0), (math.nan, 1.0)):
        with pytest.raises(BadInput, match="at least 0"):
            Weights(*weights)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"costs": {}}, "group"),
        ({"costs": {"one": {}}}, "precision"),
        ({"edges": (Edge("one", "third", {}),)}, "'third'"),
        ({"ties": (frozenset({"third"}),)}, "'third'"),
        ({"edges": (Edge("one", "other", {("w8a8", "w2"): 1.0}),)}, "w2"),
        ({"edges": (Edge("one", "other", {("w8a8", "w8a8"): math.inf}),)}, "finite"),
        ({"costs": {"one": {"p": Cost(math.nan, 0.0)}}}, "finite"),
        ({"fixed_latency_ms": math.inf}, "finite"),
    ],
)
def test_tables_that_make_no_sense(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Problem(**{"costs": PAIR.costs, **change})  # pyright: ignore[reportArgumentType]
