"""The model of latency against hidden costs, NumPy's least squares and refits that leave one sample out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from seatrial.quant.groups import Grouping, Neighbors, OperatorGroup
from seatrial.quant.latency_model import Additivity, LatencyModel, Sample, additivity

TWO, THREE = ("w8a8", "float"), ("w8a8", "w4a8", "float")


def chain(shapes: str) -> Grouping:
    """One group a letter, each the neighbor of the next; equal letters have equal shapes."""
    groups = tuple(OperatorGroup(f"g{i}/conv2d#0", (f"g{i}/conv2d#0",), "conv2d", (s,)) for i, s in enumerate(shapes))
    edges = tuple(
        Neighbors(one.name, other.name, (one.shapes[0] + other.shapes[0],)) for one, other in pairwise(groups)
    )
    return Grouping(groups, edges)


class Hidden:
    """What each shape costs in each precision and each change by direction, drawn once; the truth of a test."""

    def __init__(self, grouping: Grouping, precisions: Sequence[str], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.grouping, self.precisions = grouping, precisions
        self.constant = float(rng.uniform(0.8, 1.2))
        self.cost: dict[tuple[str, str], float] = {}
        self.change: dict[tuple[str, str, str], float] = {}
        for group in grouping.groups:
            for at, precision in enumerate(precisions):
                self.cost.setdefault((group.shapes[0], precision), 0.0 if at == 0 else float(rng.uniform(-0.1, 0.3)))
        for edge in grouping.neighbors:
            for one in precisions:
                for other in precisions:
                    new = 0.0 if one == other else float(rng.uniform(0.0, 0.1))
                    self.change.setdefault((edge.shapes[0], one, other), new)

    def ratio(self, choice: dict[str, str]) -> float:
        told = self.constant
        told += sum(self.cost[group.shapes[0], choice[group.name]] for group in self.grouping.groups)
        return told + sum(
            self.change[edge.shapes[0], choice[edge.producer], choice[edge.reader]] for edge in self.grouping.neighbors
        )


def choices(grouping: Grouping, precisions: Sequence[str], count: int, seed: int) -> list[dict[str, str]]:
    rng = np.random.default_rng(seed)
    names = [group.name for group in grouping.groups]
    return [dict(zip(names, map(str, rng.choice(precisions, len(names))), strict=True)) for _ in range(count)]


def samples(hidden: Hidden, count: int, seed: int = 1, noise: float = 0.0) -> list[Sample]:
    rng = np.random.default_rng(seed + 1000)
    drawn = choices(hidden.grouping, hidden.precisions, count, seed)
    return [Sample(choice, hidden.ratio(choice) + noise * float(rng.normal()), 0.005) for choice in drawn]


def features(grouping: Grouping, precisions: Sequence[str], choice: dict[str, str]) -> list[float]:
    """The oracle's own row: a constant, counts of shapes by precision, counts of edges by change of precision."""
    row = [1.0]
    for shapes in dict.fromkeys(group.shapes for group in grouping.groups):
        for precision in precisions[1:]:
            row.append(sum(g.shapes == shapes and choice[g.name] == precision for g in grouping.groups))
    for shapes in dict.fromkeys(edge.shapes for edge in grouping.neighbors):
        for one in precisions:
            for other in precisions:
                if one != other:
                    pairs = [(choice[e.producer], choice[e.reader]) for e in grouping.neighbors if e.shapes == shapes]
                    row.append(pairs.count((one, other)))
    return [float(value) for value in row]


@pytest.mark.parametrize(("shapes", "precisions"), [("ABCABC", TWO), ("AABBC", TWO), ("ABAB", THREE)])
def test_unseen_choices_are_foretold_from_exact_samples(shapes: str, precisions: tuple[str, ...]) -> None:
    grouping = chain(shapes)
    hidden = Hidden(grouping, precisions, seed=len(shapes))
    told = samples(hidden, 150)
    model = LatencyModel.fit(grouping, precisions, told)
    fresh = choices(grouping, precisions, 40, seed=9)
    measured = [hidden.ratio(choice) for choice in fresh]
    np.testing.assert_allclose([model.predict(choice) for choice in fresh], measured, atol=2e-4)
    design = np.array([features(grouping, precisions, dict(sample.choice)) for sample in told])
    solved = np.linalg.lstsq(design, np.array([sample.ratio for sample in told]), rcond=None)[0]
    oracle = np.array([features(grouping, precisions, choice) for choice in fresh]) @ solved
    np.testing.assert_allclose([model.predict(choice) for choice in fresh], oracle, atol=2e-4)
    assert model.loo_error < 1e-3
    shown = additivity([model.predict(choice) for choice in fresh], measured, 0.0)
    assert shown.spearman > 0.99
    assert shown.trusted


def test_costs_are_recovered_as_far_as_samples_determine_them() -> None:
    """With two precisions x(1 - y) is x - xy: the two directions of an edge are told apart only together with the costs
    of its ends; their sum, and what a flip costs in its place, are determined."""
    grouping = chain("ABCD")
    hidden = Hidden(grouping, TWO, seed=4)
    model = LatencyModel.fit(grouping, TWO, samples(hidden, 80))
    start = {group.name: "w8a8" for group in grouping.groups}
    assert model.constant == pytest.approx(hidden.constant, abs=1e-3)
    for group in grouping.groups:
        flipped = {**start, group.name: "float"}
        assert model.predict(flipped) - model.predict(start) == pytest.approx(
            hidden.ratio(flipped) - hidden.ratio(start), abs=1e-3
        )
        assert model.group_cost(group.name, "w8a8") == 0.0
    assert len(model.edge_costs()) == 3
    for edge, (producer, reader, told) in zip(grouping.neighbors, model.edge_costs(), strict=True):
        assert (producer, reader) == (edge.producer, edge.reader)
        assert set(told) == {("w8a8", "float"), ("float", "w8a8")}
        assert sum(told.values()) == pytest.approx(sum(hidden.change[edge.shapes[0], *pair] for pair in told), abs=2e-3)


def test_groups_without_neighbors_have_their_own_costs() -> None:
    grouping = Grouping(chain("ABA").groups, ())
    hidden = Hidden(grouping, THREE, seed=5)
    model = LatencyModel.fit(grouping, THREE, samples(hidden, 60))
    for group in grouping.groups:
        for precision in THREE:
            wanted = hidden.cost[group.shapes[0], precision]
            assert model.group_cost(group.name, precision) == pytest.approx(wanted, abs=1e-3)
    assert model.edge_costs() == []


def test_changes_of_precision_are_recovered_where_they_show() -> None:
    """Groups that cost the same in every precision: only changes of precision take time."""
    grouping = chain("AAAA")
    hidden = Hidden(grouping, TWO, seed=0)
    hidden.cost = dict.fromkeys(hidden.cost, 0.0)
    # By direction they cannot be told apart here but at the ends: a chain returns as often as it leaves.
    hidden.change["AA", "w8a8", "float"] = hidden.change["AA", "float", "w8a8"] = 0.07
    model = LatencyModel.fit(grouping, TWO, samples(hidden, 60))
    for _, _, told in model.edge_costs():
        assert list(told.values()) == pytest.approx([0.07, 0.07], abs=2e-3)
    for group in grouping.groups:
        assert model.group_cost(group.name, "float") == pytest.approx(0.0, abs=2e-3)


def test_equal_shapes_share_a_cost_and_sums_are_predictions() -> None:
    grouping = chain("ABAB")
    model = LatencyModel.fit(grouping, THREE, samples(Hidden(grouping, THREE, 2), 60, noise=0.01))
    for precision in THREE:
        assert model.group_cost("g0/conv2d#0", precision) == model.group_cost("g2/conv2d#0", precision)
    told = {(producer, reader): costs for producer, reader, costs in model.edge_costs()}
    assert told["g0/conv2d#0", "g1/conv2d#0"] == told["g2/conv2d#0", "g3/conv2d#0"]
    for choice in choices(grouping, THREE, 10, seed=3):
        total = model.constant + sum(model.group_cost(name, precision) for name, precision in choice.items())
        total += sum(costs.get((choice[pair[0]], choice[pair[1]]), 0.0) for pair, costs in told.items())
        assert model.predict(choice) == pytest.approx(total, abs=1e-12)


RIDGES, FACTORS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0), (1.0, 10.0, 100.0, 1e4)


def ridge(x: np.ndarray, y: np.ndarray, weight: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Ridge regression by least squares over stacked rows; the first column is the constant, which is free."""
    root = np.sqrt(weight)
    rows = np.concatenate([x * root[:, None], np.diag(np.sqrt(penalty))])
    return np.linalg.lstsq(rows, np.concatenate([y * root, np.zeros(len(penalty))]), rcond=None)[0]


@pytest.mark.parametrize("seed", range(4))
def test_the_error_is_that_of_leaving_each_sample_out(seed: int) -> None:
    """Brute force over all strengths: each sample foretold by a fit to the others; the least error is reported."""
    grouping = chain("ABCA")
    rng = np.random.default_rng(seed)
    told = samples(Hidden(grouping, TWO, seed), 24, seed=seed, noise=0.02)
    told = [Sample(one.choice, one.ratio, float(rng.uniform(0.004, 0.02))) for one in told]
    design = np.array([features(grouping, TWO, dict(sample.choice)) for sample in told])
    y, errors = np.array([one.ratio for one in told]), np.array([one.error for one in told])
    weight = np.minimum(np.median(errors) / errors, 3.0) ** 2
    counts = np.maximum(np.abs(design[:, 1:]).max(0), 1.0)
    scaled = np.concatenate([design[:, :1], design[:, 1:] / counts], 1)
    kinds = len({group.shapes for group in grouping.groups})
    found: list[tuple[float, np.ndarray]] = []
    for strength in RIDGES:
        for factor in FACTORS:
            edges = np.arange(scaled.shape[1]) > kinds
            penalty = np.where(edges, strength * factor, strength)
            penalty[0] = 1e-9
            missed = []
            for i in range(len(told)):
                rest = np.arange(len(told)) != i
                solved = ridge(scaled[rest], y[rest], weight[rest], penalty)
                missed.append(weight[i] * (y[i] - scaled[i] @ solved) ** 2)
            found.append((float(np.sqrt(np.mean(missed) / np.mean(weight))), ridge(scaled, y, weight, penalty)))
    least, solved = min(found, key=lambda pair: pair[0])
    model = LatencyModel.fit(grouping, TWO, told)
    assert model.loo_error == pytest.approx(least, rel=1e-5)
    assert [model.constant, *model.weights] == pytest.approx([solved[0], *(solved[1:] / counts)], abs=1e-6)


def test_sure_readings_weigh_more() -> None:
    grouping = chain("A")
    name = grouping.groups[0].name
    wrong = [Sample({name: "float"}, 2.0, 0.3) for _ in range(3)]
    right = [Sample({name: "float"}, 1.5, 0.01) for _ in range(3)]
    base = [Sample({name: "w8a8"}, 1.0, 0.01) for _ in range(6)]
    model = LatencyModel.fit(grouping, TWO, [*base, *wrong, *right])
    assert 1.5 < model.predict({name: "float"}) < 1.55


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.9, 1.0, 1.1, 1.3, 2.0]), st.floats(0.5, 2.0)), min_size=3, max_size=20),
    st.floats(0, 0.1),
)
def test_additivity_is_ranks_and_relative_errors(pairs: list[tuple[float, float]], spread: float) -> None:
    foretold, measured = [one for one, _ in pairs], [other for _, other in pairs]
    shown = additivity(foretold, measured, spread)
    assert shown.mape == pytest.approx(sum(abs(one - other) / other for one, other in pairs) / len(pairs))
    if len(set(foretold)) > 1 and len(set(measured)) > 1:
        ranks = np.corrcoef(rankdata(foretold), rankdata(measured))[0, 1]  # ties get their mean rank
        assert shown.spearman == pytest.approx(ranks, abs=1e-9)
    else:
        assert shown.spearman == 0.0
    assert shown.repeat_spread == spread
    assert shown.pairs == tuple(pairs)


def test_additivity_by_hand() -> None:
    shown = additivity([1.0, 2.0, 3.0, 4.0], [1.0, 2.5, 2.0, 5.0], 0.01)
    assert shown.spearman == pytest.approx(1 - 6 * 2 / (4 * 15))  # Spearman's formula: squared rank differences 0 1 1 0
    assert shown.mape == pytest.approx((0 + 0.2 + 0.5 + 0.2) / 4)
    assert additivity([1.0, 2.0], [1.0, 2.0], 0.0).spearman == 0.0  # two choices have no order worth the name


@pytest.mark.parametrize(
    ("spearman", "mape", "spread", "trusted"),
    [
        (0.9, 0.1, 0.0, True),
        (0.899, 0.0, 0.0, False),
        (1.0, 0.11, 0.0, False),
        (1.0, 0.11, 0.02, True),
        (-1.0, 0.0, 1.0, False),
    ],
)
def test_the_gate(spearman: float, mape: float, spread: float, trusted: bool) -> None:
    assert Additivity(spearman, mape, spread, ()).trusted is trusted
