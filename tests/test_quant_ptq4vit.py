"""PTQ4ViT: errors are those of the network itself, searches find the best, twins stand where they should."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from transformers_graphs import answer, captured, inputs_of

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.grids import Affine, Dynamic, FloatType, Grid, Grouped, Twin
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits, Precision
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise, source
from seatrial.core.recipe import Recipe, Round
from seatrial.core.sites import Site, op_name, operators, signature
from seatrial.errors import BadInput
from seatrial.numerics.observe import tensors_of, watch
from seatrial.numerics.ranges import MeanSquaredError, MinMax
from seatrial.quant.factor_search import FactorSearch
from seatrial.quant.judged_units import Unit, judged_units
from seatrial.quant.loss_gradients import loss_gradients
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place
from seatrial.quant.ptq4vit import GELU_LOWEST, PTQ4ViT, scaled
from seatrial.quant.unit_error import UnitError, values_of_units

RULES = PlacementRules("torch", "by-range", operator_outputs=False, attention_products="all")
EDGES = PlacementRules("edges", "unsigned", operator_outputs=True, attention_products="all")
PLAIN = Nearest(MinMax(), bias_correction=False, equalization="none")


class Gated(nn.Module):
    """One norm that three linear operators read."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(6, 3)
        self.one, self.two, self.three = (nn.Linear(12, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.flatten(1))
        return self.head(self.one(x).softmax(1) * self.two(x) + self.three(x))


@cache
def graph_of(kind: str) -> Graph:
    if kind != "gated":
        return captured(kind)
    torch.manual_seed(0)
    return capture(Gated(), torch.rand(2, 3, 2, 2))


def calibration_of(kind: str) -> list[Tensor | dict[str, Tensor]]:
    """Two batches of different sizes."""
    if kind == "gated":
        return [torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(count)) for count in (8, 6)]
    return [inputs_of(kind, seed, count) for seed, count in ((5, 3), (6, 2))]


def asked(kind: str, bits: str = "w4a4", rules: PlacementRules = RULES) -> dict[Site, Precision]:
    return place(graph_of(kind), rules, Bits.parse(bits), keep=[f"*={bits}"])


def planned(kind: str, method: Quantizer, wanted: Mapping[Site, Precision]) -> dict[Site, Grid]:
    recipe = method.plan(graph_of(kind), calibration_of(kind), wanted, rng=generator(0, "plan"))
    assert {edit.site for edit in recipe.rounds} == set(wanted)
    return {edit.site: edit.grid for edit in recipe.rounds}


def unit_of(kind: str, operator: str) -> Unit:
    layer = operators(graph_of(kind))[operator]
    (found,) = [unit for unit in judged_units(graph_of(kind), asked(kind)) if layer in unit.layers]
    return found


class Judged:
    """One unit with its error on the calibration data."""

    def __init__(self, kind: str, unit: Unit, grids: Mapping[Site, Grid]) -> None:
        self.kind, self.graph, self.unit = kind, graph_of(kind), unit
        self.batches = [tensors_of(self.graph, batch) for batch in calibration_of(kind)]
        self.slopes: dict[fx.Node, list[Tensor]] = {layer: [] for layer in unit.layers}
        for batch in self.batches:
            with loss_gradients(self.graph, batch, unit.layers) as found:
                for layer in unit.layers:
                    self.slopes[layer].append(found[layer].clone())
        ((_, values),) = values_of_units(self.graph, self.batches, [unit])
        self.error = UnitError(self.graph, unit, values, self.slopes, grids)

    def of_the_network(self, grids: Mapping[Site, Grid], layers: tuple[fx.Node, ...]) -> np.ndarray:
        """Oracle: round the unit's sites alone in the whole graph; squared errors, weighted, by last axis."""
        rounds = tuple(Round(site, grids[site]) for site in self.unit.sites)
        rounded = realise(self.graph, Recipe(rounds, signature(self.graph)))
        names = {node: name for name, node in operators(self.graph).items()}
        total = np.zeros(1)
        top = max(float(slope.abs().max()) for of in self.slopes.values() for slope in of)
        for row, batch in enumerate(calibration_of(self.kind)):
            for layer in layers:
                values = []
                for version in (self.graph, rounded):
                    seen: list[Tensor] = []
                    watch(version, [batch], {operators(version)[names[layer]]: seen.append})
                    values.append(seen[0].double().numpy())
                weighted = (values[1] - values[0]) * self.slopes[layer][row].double().numpy() / top
                squares = np.square(weighted)
                axis = 1 if op_name(layer) == "conv2d" else squares.ndim - 1
                total = total + squares.sum(tuple(other for other in range(squares.ndim) if other != axis))
        return total


JUDGED = {
    ("vit", "patch_embed.proj/conv2d#0"): ("placeholder", "weight"),
    ("vit", "blocks.0.attn/matmul#0"): ("mul", "getitem"),
    ("vit", "blocks.1.attn/matmul#1"): ("softmax", "getitem"),
    ("vit", "blocks.0.attn.proj/linear#0"): ("matmul", "weight"),
    ("vit", "head/linear#0"): ("select", "weight"),
    ("swin", "layers.0.blocks.0.attn.qkv/linear#0"): ("layer_norm", "weight"),
    ("bert", "bert.encoder.layer.0.attention.self.key/linear#0"): ("key/linear#0:input0", "weight"),
    ("gated", "two/linear#0"): ("norm", "one", "two", "three"),
}


@pytest.mark.parametrize(("kind", "operator"), JUDGED)
def test_the_error_is_that_of_the_network_itself(kind: str, operator: str) -> None:
    unit = unit_of(kind, operator)
    for part in JUDGED[kind, operator]:
        assert any(part in str(site) for site in unit.sites)
    grids = planned(kind, PLAIN, asked(kind))
    judged = Judged(kind, unit, grids)
    for site in unit.sites:
        for factor in (1.0, 0.6):
            tried = scaled(grids[site], torch.full((judged.error.channels(site),), factor))
            told = judged.error.of(site, tried).numpy()
            wanted = judged.of_the_network({**grids, site: tried}, unit.judges[site])
            if site.port == "weight":
                np.testing.assert_allclose(told, wanted, rtol=2e-3, atol=1e-6 * wanted.max())
            else:
                assert told.sum() == pytest.approx(wanted.sum(), rel=1e-3)
    # What is put in place counts for the others.
    site = unit.sites[-1]
    judged.error.put(site, tried := scaled(grids[site], torch.full((judged.error.channels(site),), 0.5)))
    other = unit.sites[0]
    wanted = judged.of_the_network({**grids, site: tried}, unit.judges[other])
    assert float(judged.error.of(other, grids[other]).sum()) == pytest.approx(wanted.sum(), rel=1e-3)


def test_units_join_what_shares_a_layer_alone() -> None:
    units = judged_units(captured("vit"), asked("vit"))
    assert sorted(len(unit.sites) for unit in units) == [2] * 14
    assert [op_name(unit.layers[0]) for unit in units[:7]] == ["conv2d", "linear", "matmul", "matmul", *["linear"] * 3]
    windows = unit_of("swin", "layers.0.blocks.1.attn.qkv/linear#0")
    assert len(windows.sites) == 2
    assert {op_name(node) for node in windows.moves} <= {"roll", "pad", "reshape", "permute", "contiguous"}


def test_a_value_that_leaves_the_network_judges_itself() -> None:
    graph = captured("vit")
    site = Site.parse("head/linear#0:output")
    (unit,) = judged_units(graph, [site])
    assert unit.layers == (operators(graph)["head/linear#0"],)
    grid = Affine(4, True, torch.tensor(0.1), torch.tensor(0))
    judged = Judged("vit", unit, {site: grid})
    rounded = realise(graph, Recipe((Round(site, grid),), signature(graph)))
    top = max(float(slope.abs().max()) for slope in judged.slopes[unit.layers[0]])
    total = 0.0
    for batch, slope in zip(judged.batches, judged.slopes[unit.layers[0]], strict=True):
        total += float(((rounded.module(*batch) - graph.module(*batch)) * slope / top).double().square().sum())
    assert float(judged.error.of(site, grid)) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("kind", ["vit", "swin", "bert", "gated"])
def test_what_is_searched_is_better_than_what_it_started_from(kind: str) -> None:
    wanted = asked(kind)
    start, found = planned(kind, PLAIN, wanted), planned(kind, PTQ4ViT(twin=False), wanted)
    assert all(found[site].bits == wanted[site].bits for site in wanted)  # pyright: ignore[reportAttributeAccessIssue]
    for unit in judged_units(graph_of(kind), wanted)[::4]:
        before, after = (
            sum(
                float(one.error.of(site, grids[site]).sum())
                for site in unit.sites
                if len(unit.judges[site]) == len(unit.layers)
            )
            for grids in (start, found)
            for one in [Judged(kind, unit, grids)]
        )
        assert after < before


def test_outputs_are_nearer_than_those_of_min_max() -> None:
    graph, inputs = captured("vit"), inputs_of("vit", 9, 16)
    wanted, calibration = asked("vit"), [inputs_of("vit", 5, 16)]
    moved = []
    for method in (PTQ4ViT(), PLAIN):
        rounded = realise(graph, method.plan(graph, calibration, wanted, rng=generator(0)))
        moved.append(float((answer(rounded, inputs) - answer(graph, inputs)).norm()))
    assert moved[0] < 0.8 * moved[1]


@pytest.mark.parametrize(
    "operator", ["blocks.0.attn.qkv/linear#0", "blocks.0.attn/matmul#0", "blocks.1.mlp.fc2/linear#0"]
)
def test_coarse_to_fine_is_near_the_full_search(operator: str) -> None:
    unit, grids = unit_of("vit", operator), planned("vit", PLAIN, asked("vit"))
    error = Judged("vit", unit, grids).error
    for site in unit.sites:
        ones = torch.ones(error.channels(site))

        def of(tried: Tensor, site: Site = site) -> Tensor:
            return error.of(site, scaled(grids[site], tried))

        full, found = (of(search.better(of, ones)).sum() for search in (FactorSearch(full=True), FactorSearch()))
        assert float(found) <= 1.15 * float(full)
        assert float(found) < float(of(ones).sum())


@given(st.lists(st.floats(0.01, 1.2), min_size=1, max_size=5), st.booleans())
def test_a_valley_of_each_channel_is_found(bottoms: list[float], full: bool) -> None:
    bottom = torch.tensor(bottoms)
    found = FactorSearch(full=full).better(lambda tried: (tried - bottom).abs().double(), torch.ones(len(bottoms)))
    assert float((found - bottom).abs().max()) <= 0.0119 / 2 * 1.01 + (0.0 if full else 0.0119)


@given(st.lists(st.floats(0, 1), min_size=102, max_size=102))
def test_a_full_search_is_brute_force_and_no_search_is_worse_than_nothing(heights: list[float]) -> None:
    def of(tried: Tensor) -> Tensor:
        index = ((tried - 0.01) / 0.0119).round().long() + (tried == 1)
        return torch.tensor(heights, dtype=torch.float64)[index.clamp(0, 101)]

    one = torch.ones(1)
    lattice = torch.tensor([0.01 + number * 0.0119 for number in range(101)])
    wanted = min(float(of(one)), float(torch.cat([of(tried[None]) for tried in lattice]).min()))
    assert float(of(FactorSearch(full=True).better(of, one))) == wanted
    for near in (True, False):
        assert float(of(FactorSearch().better(of, one, near=near))) <= float(of(one))


def test_gelu_goes_as_far_down_as_the_paper_says() -> None:
    """Yuan et al. 2022, section 3.2 and the authors' code: -0.16997; at 4 bits 8 steps below zero."""
    lowest = float(nn.functional.gelu(torch.linspace(-2, 0, 200_001, dtype=torch.float64)).min())
    assert lowest == pytest.approx(-GELU_LOWEST, abs=5e-6)


@pytest.mark.parametrize(("kind", "bits"), [("vit", 4), ("swin", 3), ("bert", 4)])
def test_twins_stand_behind_softmax_and_gelu_alone(kind: str, bits: int) -> None:
    graph, wanted = graph_of(kind), asked(kind, f"w{bits}a{bits}")
    found, half, splits = planned(kind, PTQ4ViT(rounds=1), wanted), 2 ** (bits - 1), set()
    for site, grid in found.items():
        node = source(operators(graph)[site.operator], site.port)
        kinds = {op_name(node), *(op_name(read) for read in node.all_input_nodes)}
        if "softmax" in kinds and "matmul" not in op_name(node):
            assert isinstance(grid, Twin)
            assert not grid.by_sign
            assert float(grid.coarse) == pytest.approx(1 / (half - 1))
            splits.add(round(float(torch.log2(grid.coarse / grid.fine)), 5))
        elif op_name(node) == "gelu":
            assert isinstance(grid, Twin)
            assert grid.by_sign
            assert float(grid.fine) == pytest.approx(0.16997 / half)
        else:
            assert isinstance(grid, Affine)
    assert splits
    assert splits <= set(range(20))
    plain = planned(kind, PTQ4ViT(twin=False, rounds=1), wanted)
    assert all(isinstance(grid, Affine) for grid in plain.values())


def test_behind_moves_too() -> None:
    graph = captured("vit")
    product = Site.parse("blocks.0.attn.proj/linear#0:input0")
    edge = Site.parse("blocks.0.attn/matmul#1:input0")
    found = planned("vit", PTQ4ViT(rounds=1), {edge: Precision(4), product: Precision(4)})
    assert isinstance(found[edge], Twin)
    assert isinstance(found[product], Affine)
    signed = planned("vit", PTQ4ViT(rounds=1), {edge: Precision(4, signed=True)})
    assert isinstance(signed[edge], Affine)
    assert op_name(source(operators(graph)[edge.operator], "input0")) == "softmax"


def test_what_cannot_be_searched_is_as_nearest_has_it() -> None:
    wanted = asked("vit")
    sites = [site for site in wanted if site.port == "output" and "norm" in str(site)]
    wanted[sites[0]] = replace(wanted[sites[0]], dynamic=True)
    wanted[sites[1]] = Precision(16, float_type="bf16")
    for site in sites[2:]:
        wanted[site] = replace(wanted[site], tie="a pair")
    found = planned("vit", PTQ4ViT(), wanted)
    nearest = planned("vit", Nearest(MeanSquaredError(), bias_correction=False, equalization="none"), wanted)
    assert found[sites[0]] == Dynamic(4)
    assert found[sites[1]] == FloatType("bf16")
    for site in sites[2:]:
        one, other = found[site], nearest[site]
        assert isinstance(one, Affine)
        assert isinstance(other, Affine)
        assert torch.equal(one.scale, other.scale)
        assert torch.equal(one.zero_point, other.zero_point)


@pytest.mark.parametrize("rules", [RULES, EDGES], ids=lambda rules: rules.name)
def test_weights_of_tensors_channels_and_groups(rules: PlacementRules) -> None:
    wanted = asked("vit", "w4a8", rules)
    weights = [site for site in wanted if site.port == "weight" and "linear" in str(site)]
    wanted[weights[0]] = replace(wanted[weights[0]], axis=None)
    wanted[weights[1]] = Precision(4, group=8)
    found, start = planned("vit", PTQ4ViT(rounds=2), wanted), planned("vit", PLAIN, wanted)
    one, grouped, channels = (found[site] for site in weights[:3])
    assert isinstance(one, Affine)
    assert one.scale.ndim == 0
    assert isinstance(grouped, Grouped)
    base = start[weights[1]]
    assert isinstance(base, Grouped)
    factors = grouped.scale / base.scale  # one for each row
    assert float(factors.std(1).max()) < 1e-5
    assert float(factors.std()) > 1e-3
    assert isinstance(channels, Affine)
    assert channels.axis == 0
    realise(
        captured("vit"), Recipe(tuple(Round(site, grid) for site, grid in found.items()), signature(captured("vit")))
    )


class Blind(nn.Module):
    """A branch that the answer does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.blind, self.head = nn.Linear(12, 6), nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.head(self.seen(x).relu() + 0.0 * self.blind(x.relu() - 1).relu())


def test_a_loss_without_a_slope_is_told() -> None:
    torch.manual_seed(0)
    graph: Graph = capture(Blind(), torch.rand(2, 3, 2, 2))
    wanted = place(graph, RULES, Bits(4, 4))
    recipe = PTQ4ViT().plan(graph, [torch.rand(5, 3, 2, 2)], wanted, rng=generator(0))
    (note,) = recipe.notes
    assert "no slope at blind/linear#0" in note
    assert "seen" not in note
    assert len(recipe.rounds) == len(wanted)


def test_bad_inputs_are_refused() -> None:
    with pytest.raises(BadInput, match="no calibration data"):
        PTQ4ViT().plan(captured("vit"), [], asked("vit"), rng=generator(0))
    with pytest.raises(BadInput, match=r"logits \[batch, classes\]"):
        PTQ4ViT().plan(captured("opt"), [inputs_of("opt")], asked("opt"), rng=generator(0))
    with pytest.raises(BadInput, match="not finite at image/placeholder#0:output"):
        PTQ4ViT().plan(captured("vit"), [torch.full((2, 3, 32, 32), torch.nan)], asked("vit"), rng=generator(0))
    with pytest.raises(BadInput, match="at least one of each"):
        PTQ4ViT(rounds=0)
    with pytest.raises(BadInput, match="0 < low < high"):
        FactorSearch(low=0)
