"""Sensitivities of groups against whole networks with one group rounded, and what synthetic inputs promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor, nn

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, Normalization, capture
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits, Precision
from seatrial.core.realise import realise
from seatrial.core.recipe import Recipe, Replace, Round
from seatrial.core.sites import Site, operators, signature
from seatrial.errors import BadInput
from seatrial.models.opened import Model, open_model
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.numerics.observe import tensors_of, watch
from seatrial.numerics.ranges import weight_grid
from seatrial.quant.direct_sensitivity import direct, ranked
from seatrial.quant.mask_guided import MaskGuided
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place
from seatrial.quant.resumed import Resumed, bias_corrections, in_parts
from seatrial.quant.synthetic_inputs import distilled, gaussian

RULES = PlacementRules("plain", "by-range", operator_outputs=False)
NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


class Residual(nn.Module):
    """A stem, a depthwise block beside a shortcut, a concatenation and a head of five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.depth, self.point = nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = x + self.point(torch.relu(self.depth(x)))
        return self.head(torch.cat([x, y], 1).mean((2, 3)))


class Tokens(nn.Module):
    """Logits of 11 tokens at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.embedding(input_ids)))) * attention_mask.unsqueeze(-1)


@pytest.fixture(scope="module")
def captured() -> Graph:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Residual()
        nn.init.uniform_(model.norm.weight, 0.3, 2.0)
        model.norm.momentum = 1.0
        # Smooth pictures: their statistics behind the stem are not those of noise.
        model.train()(nn.functional.interpolate(torch.randn(64, 3, 3, 3), size=(12, 12), mode="bilinear"))
        return capture(model.eval(), torch.rand(2, 3, 12, 12), normalization=NORMALIZATION)


@pytest.fixture(scope="module")
def graph(captured: Graph) -> Graph:
    return fold_batch_norm(captured)


@pytest.fixture(scope="module")
def tokens() -> Graph:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        ids = torch.ones(2, 4, dtype=torch.int64)
        return capture(Tokens().eval(), {"input_ids": ids, "attention_mask": ids.clone()})


def pictures(count: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def planned(graph: Graph, bits: str, **options: object) -> Recipe:
    asked = place(graph, RULES, Bits.parse(bits))
    return Nearest(**options).plan(graph, [pictures(16, 1)], asked, rng=generator(0))  # pyright: ignore[reportArgumentType]


def by_operator(recipe: Recipe) -> dict[str, frozenset[Site]]:
    """One group for each weight with the activation before it in the recipe, so that groups have two sites."""
    rounds = [edit.site for edit in recipe.rounds]
    weights, others = (sorted(s for s in rounds if (s.port == "weight") == kind) for kind in (True, False))
    groups = {str(site): frozenset({site, others[i % len(others)]}) for i, site in enumerate(weights)}
    return groups | {str(site): frozenset({site}) for site in others}


def only(recipe: Recipe, sites: frozenset[Site]) -> Recipe:
    """The recipe with the rounds of one group alone and without corrections for the others."""
    out = bias_corrections(recipe)
    edits = [edit for edit in recipe.edits if not any(edit is other for other in out)]
    return replace(recipe, edits=tuple(e for e in edits if not isinstance(e, Round) or e.site in sites))


def divergence(before: Tensor, after: Tensor) -> float:
    one, other = before.double().log_softmax(-1), after.double().log_softmax(-1)
    return float((one.exp() * (one - other)).sum(-1).mean())


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
@pytest.mark.parametrize("options", [{}, {"equalization": "cross-layer"}, {"bias_correction": False}], ids=str)
def test_direct_is_what_the_network_with_one_group_rounded_says(graph: Graph, bits: str, options: dict) -> None:
    recipe, x = planned(graph, bits, **options), pictures()
    groups = by_operator(recipe)
    found = direct(graph, {bits: recipe}, {name: {bits: sites} for name, sites in groups.items()}, x)
    assert len(found) == len(groups) > 4
    with torch.no_grad():
        for name, sites in groups.items():
            whole = realise(graph, only(recipe, sites)).module(x)
            network = Resumed(graph, recipe)
            network.clean([x])
            assert torch.equal(network.run_on(network.switched_on(sites)), whole)
            assert found[name, bits] == pytest.approx(divergence(graph.module(x), whole), rel=1e-9, abs=1e-15)
    assert any(value > 0 for value in found.values())
    values = [one.kl for one in ranked(found)]
    assert values == sorted(values, reverse=True)


def test_corrections_are_told_from_equalization(graph: Graph) -> None:
    corrected, equalized = planned(graph, "w4a8"), planned(graph, "w4a8", bias_correction=False)
    names = {edit.site.operator for edit in corrected.rounds if edit.site.port == "weight"}
    assert {edit.site.operator for edit in bias_corrections(corrected)} == names
    assert any(isinstance(edit, Replace) and edit.site.port == "bias" for edit in equalized.edits)
    assert bias_corrections(equalized) == []


@given(st.sets(st.integers(0, 20)), st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_running_on_is_running_whole_for_any_sites(chosen: set[int], count: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        small = capture(Residual().eval(), torch.rand(2, 3, 12, 12))
    recipe = planned(fold_batch_norm(small), "w4a4")
    small = fold_batch_norm(small)
    rounds = [edit.site for edit in recipe.rounds]
    sites = frozenset(rounds[i % len(rounds)] for i in chosen)
    x = pictures(count)
    network = Resumed(small, recipe)
    clean = network.clean([x])
    with torch.no_grad():
        assert torch.equal(network.run_on(network.switched_on(sites)), realise(small, only(recipe, sites)).module(x))
        assert torch.equal(network.run_on({}), clean)
        assert torch.equal(clean, realise(small, only(recipe, frozenset())).module(x))


def test_local_values_are_those_of_the_whole_run(graph: Graph) -> None:
    recipe, x = planned(graph, "w4a4"), pictures()
    network = Resumed(graph, recipe)
    network.clean([x])
    site = next(edit.site for edit in recipe.rounds if edit.site.operator.startswith("point"))
    node = network.operators[site.operator]
    seen: list[Tensor] = []
    alone = realise(graph, only(recipe, frozenset({site})))
    watch(alone, [x], {operators(alone)[site.operator]: seen.append})
    assert torch.equal(network.local(network.switched_on([site]), [node])[node], seen[0])


def test_parts_bound_what_is_kept_and_change_little(graph: Graph) -> None:
    recipe, x = planned(graph, "w4a4"), pictures()
    groups = {name: {"w4a4": sites} for name, sites in by_operator(recipe).items()}
    one = Resumed(graph)
    one.clean([x[:1]])
    sizes = [len(part) for (part,) in in_parts(graph, x, memory_bytes=3 * one.kept_bytes)]
    assert sizes == [3, 3, 2]
    whole, cut = (direct(graph, {"w4a4": recipe}, groups, x, memory_bytes=size) for size in (2**30, one.kept_bytes))
    assert all(cut[key] == pytest.approx(whole[key], rel=1e-3, abs=1e-9) for key in whole)


def test_one_linear_operator_estimated_is_one_measured() -> None:
    """Where KL is quadratic in the error, estimate and measure differ by chance alone; 16 draws settle it."""
    measured, estimated = {"6": 0.0, "8": 0.0}, {"6": 0.0, "8": 0.0}
    for seed in range(16):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            graph = capture(nn.Linear(24, 10).eval(), torch.rand(2, 24))
        site = Site.parse("/linear#0:weight")
        weight = next(value for value in graph.module.state_dict().values() if value.ndim == 2)
        recipes = {
            bits: Recipe((Round(site, weight_grid(weight, Precision(int(bits), True, True, 0))),), signature(graph))
            for bits in measured
        }
        groups = {"head": dict.fromkeys(recipes, frozenset({site}))}
        x = torch.randn(64, 24, generator=torch.Generator().manual_seed(seed))
        oracle = direct(graph, recipes, groups, x)
        found = MaskGuided(local_samples=16).estimate(graph, recipes, groups, x, rng=generator(seed))
        for bits in measured:
            measured[bits] += oracle["head", bits]
            estimated[bits] += found["head", bits]
    for bits, value in measured.items():
        assert estimated[bits] == pytest.approx(value, rel=0.3)
    # 2 bits are a factor of 4 in the step and of 16 in its square.
    assert estimated["6"] / estimated["8"] == pytest.approx((127 / 31) ** 2, rel=0.15)


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_a_site_alone_in_its_own_precision_is_the_direct_measure(graph: Graph, bits: str) -> None:
    recipe, x = planned(graph, bits), pictures()
    groups = {str(edit.site): {bits: frozenset({edit.site})} for edit in recipe.rounds}
    oracle = direct(graph, {bits: recipe}, groups, x)
    found = MaskGuided(share=1.0).estimate(graph, {bits: recipe}, groups, x, rng=generator(0))
    assert found == pytest.approx(oracle, rel=1e-5)


def test_estimates_repeat_with_their_seed_and_change_nothing(graph: Graph) -> None:
    recipes = {bits: planned(graph, bits) for bits in ("w8a8", "w4a4")}
    names = by_operator(recipes["w8a8"])
    groups = {name: dict.fromkeys(recipes, sites) for name, sites in names.items()}
    x = pictures()
    before = x.clone(), {name: value.clone() for name, value in graph.module.state_dict().items()}
    first, again, other = (MaskGuided().estimate(graph, recipes, groups, x, rng=generator(seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert set(first) == {(name, bits) for name in groups for bits in recipes}
    assert all(value >= 0 for value in first.values())
    assert torch.equal(x, before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in graph.module.state_dict().items())
    backwards = dict(reversed(list(groups.items())))
    assert MaskGuided().estimate(graph, recipes, backwards, x, rng=generator(0)) == first


def test_a_group_that_rounds_nothing_costs_nothing(graph: Graph) -> None:
    recipe = Recipe((), signature(graph))
    groups = {"none": {"float": frozenset[Site]()}}
    assert direct(graph, {"float": recipe}, groups, pictures()) == {("none", "float"): 0.0}
    assert MaskGuided().estimate(graph, {"float": recipe}, groups, pictures(), rng=generator(0)) == {
        ("none", "float"): 0.0
    }


def test_token_logits_count_positions_that_the_mask_shows(tokens: Graph) -> None:
    ids = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": mask}
    recipe = Nearest().plan(tokens, [batch], place(tokens, RULES, Bits(4, 8)), rng=generator(0))
    sites = frozenset(edit.site for edit in recipe.rounds)
    ((_, found),) = direct(tokens, {"w4a8": recipe}, {"all": {"w4a8": sites}}, batch).items()
    with torch.no_grad():
        before, after = (
            one.module(*tensors_of(tokens, batch)).double().log_softmax(-1)
            for one in (tokens, realise(tokens, only(recipe, sites)))
        )
    rows = (before.exp() * (before - after)).sum(-1)
    assert found == pytest.approx(float(rows[mask.bool()].mean()), rel=1e-9)


def test_maps_are_judged_by_their_relative_error() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
        graph = capture(model, torch.rand(2, 3, 12, 12))
    recipe, x = planned(graph, "w8a8"), pictures()
    sites = frozenset(edit.site for edit in recipe.rounds)
    ((_, found),) = direct(graph, {"w8a8": recipe}, {"all": {"w8a8": sites}}, x).items()
    with torch.no_grad():
        before, after = graph.module(x).double(), realise(graph, only(recipe, sites)).module(x).double()
    assert found == pytest.approx(float((after - before).square().sum() / before.square().sum()), rel=1e-9)


def test_bad_input_is_refused(graph: Graph) -> None:
    recipe = planned(graph, "w8a8")
    site = recipe.rounds[0].site
    unknown = {"a": {"w8a8": frozenset({Site("nowhere", "conv2d", 0, "weight")})}}
    estimate = MaskGuided().estimate
    for groups, x, message in (
        ({"a": {"w4a8": frozenset({site})}}, pictures(), "precision 'w4a8'"),
        (unknown, pictures(), "nowhere"),
        ({"a": {"w8a8": frozenset({site})}}, pictures()[:0], "without samples"),
        ({"a": {"w8a8": frozenset({site})}}, pictures() * torch.nan, "not finite"),
    ):
        with pytest.raises(BadInput, match=message):
            direct(graph, {"w8a8": recipe}, groups, x)
        with pytest.raises(BadInput, match=message):
            estimate(graph, {"w8a8": recipe}, groups, x, rng=generator(0))
    wrong: list[dict[str, Any]] = [
        {"share": 0.0},
        {"share": 1.1},
        {"masks": 0},
        {"local_samples": 0},
    ]
    for options in wrong:
        with pytest.raises(BadInput, match="share"):
            MaskGuided(**options)


def test_gaussian_pictures_follow_the_normalization(graph: Graph) -> None:
    found = gaussian(graph, 64, rng=generator(0))
    assert isinstance(found, Tensor)
    assert found.shape == (64, 3, 12, 12)
    assert 0 <= float(found.min()) < float(found.max()) <= 1
    assert torch.equal(found, gaussian(graph, 64, rng=generator(0)))  # pyright: ignore[reportArgumentType]
    # Half of the values lie within 0.6745 deviations of the mean, clipped or not.
    for i, (mean, std) in enumerate(zip(NORMALIZATION.mean, NORMALIZATION.std, strict=True)):
        low, middle, high = np.quantile(found[:, i].numpy(), [0.25, 0.5, 0.75])
        assert middle == pytest.approx(mean, abs=0.02)
        assert high - low == pytest.approx(2 * 0.6745 * std, rel=0.05)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        plain = capture(nn.Conv2d(3, 4, 3).eval(), torch.rand(2, 3, 12, 12))
    unknown = gaussian(plain, 64, rng=generator(0))
    assert isinstance(unknown, Tensor)
    assert float(unknown.median()) == pytest.approx(0.45, abs=0.01)


def test_random_tokens_are_in_the_vocabulary(tokens: Graph) -> None:
    found = gaussian(tokens, 16, rng=generator(0), length=20)
    assert isinstance(found, dict)
    assert found["input_ids"].shape == found["attention_mask"].shape == (16, 20)
    assert sorted(found["input_ids"].unique().tolist()) == list(range(11))
    assert bool((found["attention_mask"] == 1).all())
    assert tokens.module(*tensors_of(tokens, found)).shape == (16, 20, 11)


def test_distilled_pictures_show_the_statistics_of_batch_norms(captured: Graph) -> None:
    def distance(x: Tensor) -> float:
        seen: list[Tensor] = []
        watch(captured, [x], {operators(captured)["stem/conv2d#0"]: seen.append})
        state = captured.module.state_dict()
        mean, variance = (
            next(state[key] for key in state if key.endswith(end)) for end in ("running_mean", "running_var")
        )
        value = seen[0]
        moved = (value.mean((0, 2, 3)) - mean).square() + (value.var((0, 2, 3)).sqrt() - variance.sqrt()).square()
        return float(moved.mean())

    start = gaussian(captured, 8, rng=generator(0))
    assert isinstance(start, Tensor)
    found = distilled(captured, 8, steps=60, rng=generator(0))
    assert 0 <= float(found.min()) < float(found.max()) <= 1
    assert not found.requires_grad
    assert distance(found) < 0.1 * distance(start)
    assert torch.equal(found, distilled(captured, 8, steps=60, rng=generator(0)))


def test_synthetic_inputs_refuse_what_they_cannot_make(graph: Graph, captured: Graph, tokens: Graph) -> None:
    with pytest.raises(BadInput, match="without batch norms"):
        distilled(graph, 4, steps=5, rng=generator(0))
    with pytest.raises(BadInput, match="one picture input"):
        distilled(tokens, 4, steps=5, rng=generator(0))
    with pytest.raises(BadInput, match="0 steps"):
        distilled(captured, 4, steps=0, rng=generator(0))
    with pytest.raises(BadInput, match="0 synthetic inputs"):
        gaussian(graph, 0, rng=generator(0))
    fixed = Graph(graph.module, (replace(graph.inputs[0], shape=(4, 3, 12, 12)),))
    with pytest.raises(BadInput, match="exactly 4"):
        gaussian(fixed, 3, rng=generator(0))


def test_a_trained_network_is_ranked_as_the_direct_measure_ranks_it(shared: Path) -> None:
    model = open_model(shared / "models" / "resnet20_cifar10.pt2")
    assert isinstance(model, Model)
    graph = fold_batch_norm(model.graph)
    data = np.load(shared / "cifar10_lossless.npz")
    images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).float() / 255
    held_out = torch.from_numpy(data["split"] == "test")
    asked = {bits: place(graph, RULES, Bits.parse(bits)) for bits in ("w8a8", "w4a8")}
    calibration = list(images[~held_out][:64].split(32))
    recipes = {bits: Nearest().plan(graph, calibration, sites, rng=generator(0)) for bits, sites in asked.items()}
    groups = {str(site): dict.fromkeys(recipes, frozenset({site})) for site in asked["w4a8"]}
    x = images[held_out][:128]
    oracle = direct(graph, recipes, groups, x)
    found = MaskGuided().estimate(graph, recipes, groups, x, rng=generator(0))
    ranks = spearmanr([oracle[key] for key in oracle], [found[key] for key in oracle])
    assert ranks[0] >= 0.8  # pyright: ignore[reportOperatorIssue]
