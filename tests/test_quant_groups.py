"""Operators that decide together, what a search moves at once, and recipes for any choice, on small networks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_quant_placement import NETWORKS, W8A8, graph_of, ports
from torch import Tensor, nn

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits
from seatrial.core.realise import realise
from seatrial.core.recipe import Affine, Grid, Recipe, Round
from seatrial.core.sites import Site, op_name, operators, signature
from seatrial.deploy.onnxruntime import OnnxRuntime
from seatrial.deploy.openvino import OpenVino
from seatrial.errors import BadInput
from seatrial.quant.assignment import FLOAT, Assignments
from seatrial.quant.groups import Grouping, group_operators
from seatrial.quant.moves import shared_moves, single_moves
from seatrial.quant.nearest import Nearest
from seatrial.quant.operator_kinds import origin
from seatrial.quant.placement import place, place_operators, quantizable

# What is asked for must not depend on the CPU: some saturate with weights of 8 bits, and get 7.
RULES = {
    name: replace(target.placement, weight_bits_cap=8)
    for name, target in {"openvino": OpenVino(), "onnxruntime": OnnxRuntime()}.items()
}
INPUTS_ONLY, OUTPUTS_TOO = RULES["openvino"], RULES["onnxruntime"]
both_rules = pytest.mark.parametrize("rules", RULES.values(), ids=list(RULES))
every_network = pytest.mark.parametrize("name", NETWORKS)
CONCATENATED = ("Fire", "Overlapping")


# Placement by operator


@both_rules
@every_network
def test_all_operators_in_integers_are_placed_as_by_bits(name: str, rules: PlacementRules) -> None:
    graph = graph_of(name)
    wanted = dict.fromkeys(quantizable(graph, rules), W8A8)
    assert place_operators(graph, rules, wanted) == place(graph, rules, W8A8)


@both_rules
@every_network
def test_no_operators_give_no_sites(name: str, rules: PlacementRules) -> None:
    graph = graph_of(name)
    assert place_operators(graph, rules, {}) == {}
    assert place_operators(graph, rules, dict.fromkeys(quantizable(graph, rules), "float32")) == {}


@both_rules
def test_each_operator_gets_its_own_bits(rules: PlacementRules) -> None:
    graph = graph_of("Residual")
    placed = place_operators(graph, rules, {"one/conv2d#0": Bits(4, 6), "head/linear#0": "bf16"})
    told = {str(site): (wanted.bits, wanted.float_type) for site, wanted in placed.items()}
    assert told["one/conv2d#0:weight"] == (4, None)
    assert told["head/linear#0:weight"] == (16, "bf16")
    assert {bits for site, (bits, kind) in told.items() if "weight" not in site and kind is None} == {6}


@both_rules
def test_an_operator_that_these_rules_keep_in_float_is_refused(rules: PlacementRules) -> None:
    for name in ("/relu#0", "no.such/conv2d#0"):
        with pytest.raises(BadInput, match="leave it out"):
            place_operators(graph_of("Residual"), rules, {name: W8A8})


def test_a_convolution_in_integers_writes_codes_for_a_reader_that_was_kept() -> None:
    graph = graph_of("Residual")
    everything = dict.fromkeys(quantizable(graph, OUTPUTS_TOO), W8A8)
    some = {name: bits for name, bits in everything.items() if name != "one/conv2d#0"}
    # The ReLU behind the stem is read by the kept convolution and by the sum.
    assert "/relu#0:output" in ports(place_operators(graph, OUTPUTS_TOO, some))
    edges = ports(place_operators(graph, INPUTS_ONLY, some))
    assert "/add#0:input1" in edges
    assert "/relu#0:output" not in edges
    alone = ports(place_operators(graph, OUTPUTS_TOO, {"stem/conv2d#0": W8A8}))
    assert alone == {"stem/conv2d#0:weight", "/div#0:output", "/relu#0:output"}
    # Without rounds on outputs nobody reads one: the kept readers get what was computed.
    assert ports(place_operators(graph, INPUTS_ONLY, {"stem/conv2d#0": W8A8})) == alone - {"/relu#0:output"}


class Watched(nn.Module):
    """A convolution that another one reads, and a sine, which no runtime computes in integers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.next = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x / 2).relu()
        return (self.next(x) * x.sin()).mean((2, 3))


def test_a_convolution_whose_output_must_stay_float_stays_float_where_outputs_are_rounded() -> None:
    graph = capture(Watched(), torch.rand(2, 3, 6, 6))
    assert list(quantizable(graph, INPUTS_ONLY)) == ["stem/conv2d#0", "next/conv2d#0"]
    assert list(quantizable(graph, OUTPUTS_TOO)) == []
    assert list(quantizable(graph, OUTPUTS_TOO, keep=["stem"])) == []  # a pattern may name it all the same
    asked = place(graph, OUTPUTS_TOO, W8A8, keep=["next=w8a8"])
    assert ports(asked) == {"next/conv2d#0:weight", "next/conv2d#0:input0"}
    assert place_operators(graph, OUTPUTS_TOO, {"next/conv2d#0": W8A8}) == asked
    assert list(quantizable(graph, OUTPUTS_TOO, keep=["next=w8a8"])) == ["next/conv2d#0"]


@both_rules
def test_keep_leaves_operators_out(rules: PlacementRules) -> None:
    graph = graph_of("Fire")
    every = quantizable(graph, rules)
    assert set(every) - set(quantizable(graph, rules, keep=["left*", "/mean#0"])) == {
        *("left/conv2d#0", "left2/conv2d#0", "/mean#0")
    }
    assert list(quantizable(graph, rules, keep=["left=8"])) == list(every)  # that is an integer precision
    assert list(quantizable(graph, rules, keep=["*", "head=w8a8"])) == ["head/conv2d#0"]  # later patterns win
    with pytest.raises(BadInput, match="nothing"):
        quantizable(graph, rules, keep=["left*", "nothing*"])


@both_rules
def test_operators_come_in_execution_order(rules: PlacementRules) -> None:
    for name in NETWORKS:
        graph = graph_of(name)
        found = quantizable(graph, rules)
        order = list(operators(graph))
        assert sorted(found, key=order.index) == list(found)
        assert all(operators(graph)[one] is node for one, node in found.items())


def test_origin_is_behind_activations_and_what_carries_values() -> None:
    named = operators(graph_of("Fire"))
    assert origin(named["/relu#0"]) is named["stem/conv2d#0"]
    assert origin(named["/max_pool2d#0"]) is named["left/conv2d#0"]  # the first part of the concatenation
    assert origin(named["stem/conv2d#0"]) is named["stem/conv2d#0"]
    start = next(node for node in named.values() if node.op == "placeholder")
    assert origin(start) is start
    assert op_name(origin(operators(graph_of("Excite"))["/mul#0"])) == "mul"


# Groups


@both_rules
@every_network
def test_groups_part_the_operators(name: str, rules: PlacementRules) -> None:
    """Law: every operator that may run in integers is in exactly one group, in execution order, named by its first."""
    graph = graph_of(name)
    grouping = group_operators(graph, rules)
    order = list(quantizable(graph, rules))
    assert sorted(each for group in grouping.groups for each in group.operators) == sorted(order)
    for group in grouping.groups:
        assert group.name == group.operators[0]
        assert list(group.operators) == sorted(group.operators, key=order.index)
        assert len(group.shapes) == len(group.operators)
        assert group.kind.split("+") == [op_name(operators(graph)[one]) for one in group.operators]
    names = [group.name for group in grouping.groups]
    assert names == sorted(names, key=order.index)


@both_rules
@every_network
def test_neighbors_name_groups(name: str, rules: PlacementRules) -> None:
    grouping = group_operators(graph_of(name), rules)
    names = {group.name for group in grouping.groups}
    pairs = [(one.producer, one.reader) for one in grouping.neighbors]
    # No group of these networks stands alone, but where what would read it is left in float.
    ends = {end for pair in pairs for end in pair}
    assert ends == names or (ends < names and rules is OUTPUTS_TOO and name == "Overlapping")
    assert len(set(pairs)) == len(pairs)
    assert all(producer != reader for producer, reader in pairs)


def groups_of(name: str, rules: PlacementRules) -> set[tuple[str, ...]]:
    return {group.operators for group in group_operators(graph_of(name), rules).groups}


def neighbors_of(name: str, rules: PlacementRules) -> set[tuple[str, str]]:
    return {(one.producer, one.reader) for one in group_operators(graph_of(name), rules).neighbors}


@both_rules
def test_squeeze_and_excite_is_one_group(rules: PlacementRules) -> None:
    branch = ("/mean#0", "down/conv2d#0", "up/conv2d#0", "/mul#0")
    # The last convolution writes the network's output, which stays float.
    last = [] if rules is OUTPUTS_TOO else [("out/conv2d#0",)]
    assert groups_of("Excite", rules) == {("stem/conv2d#0",), branch, *last}
    assert neighbors_of("Excite", rules) == {("stem/conv2d#0", "/mean#0"), *(("/mean#0", *one) for one in last)}


@both_rules
def test_a_residual_sum_joins_its_convolution_and_a_pool_its_reader(rules: PlacementRules) -> None:
    one = [("stem/conv2d#0",), ("one/conv2d#0",)]
    assert groups_of("Residual", rules) == {*one, ("two/conv2d#0", "/add#0"), ("/mean#0", "head/linear#0")}
    assert neighbors_of("Residual", rules) == {
        ("stem/conv2d#0", "one/conv2d#0"),
        ("one/conv2d#0", "two/conv2d#0"),
        ("stem/conv2d#0", "two/conv2d#0"),  # the sum reads it too
        ("two/conv2d#0", "/mean#0"),
    }


@both_rules
def test_both_parts_of_a_concatenation_are_neighbors_of_its_reader(rules: PlacementRules) -> None:
    found = neighbors_of("Fire", rules)
    assert {("left/conv2d#0", "squeeze2/conv2d#0"), ("right/conv2d#0", "squeeze2/conv2d#0")} <= found
    assert ("head/conv2d#0", "/mean#0") in groups_of("Fire", rules)  # a pool without a reader joins what it reads


def test_attention_products_are_groups_where_the_rules_have_them() -> None:
    assert {("/matmul#0",), ("/matmul#1",)} <= groups_of("Attention", INPUTS_ONLY)
    assert not any("matmul#1" in one for group in groups_of("Attention", OUTPUTS_TOO) for one in group)
    products = {("qkv/linear#0", "/matmul#0"), ("/matmul#0", "/matmul#1"), ("/matmul#1", "proj/linear#0")}
    assert products <= neighbors_of("Attention", INPUTS_ONLY)
    # Behind a softmax and a product that stay float.
    assert ("/matmul#0", "proj/linear#0") in neighbors_of("Attention", OUTPUTS_TOO)


class Queries(nn.Module):
    """Attention with a linear operator for each of query, key and value, as BERT has it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        weights = (self.query(x) @ self.key(x).transpose(-2, -1)).softmax(-1)
        return self.head(x + self.out(weights @ self.value(x)))


@both_rules
def test_linear_operators_that_read_one_tensor_are_one_group(rules: PlacementRules) -> None:
    grouping = group_operators(capture(Queries(), torch.rand(2, 5, 8)), rules)
    found = {group.operators for group in grouping.groups}
    assert ("query/linear#0", "key/linear#0", "value/linear#0") in found
    assert ("out/linear#0",) in found
    assert ("head/linear#0",) in found


@both_rules
def test_kept_operators_are_in_no_group(rules: PlacementRules) -> None:
    grouping = group_operators(graph_of("Fire"), rules, keep=["squeeze2"])
    assert "squeeze2/conv2d#0" not in {one for group in grouping.groups for one in group.operators}
    names = {group.name for group in grouping.groups}
    assert {end for one in grouping.neighbors for end in (one.producer, one.reader)} <= names
    # The next operators become neighbors over the one that was kept.
    assert any(one.reader == "left2/conv2d#0" for one in grouping.neighbors)
    with pytest.raises(BadInput, match="nothing"):
        group_operators(graph_of("Fire"), rules, keep=["nothing*"])


class Stages(nn.Module):
    """Blocks of one shape: a convolution, a depthwise one, a convolution; then a head."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)])
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            assert isinstance(block, nn.ModuleList)
            inner = x
            for part in block:
                inner = part(inner).relu()
            x = inner
        return self.head(x.mean((2, 3)))


@cache
def stages() -> Grouping:
    return group_operators(capture(Stages(), torch.rand(2, 3, 6, 6)), INPUTS_ONLY)


@pytest.mark.parametrize("name", [*NETWORKS, "Stages"])
def test_moves_hold_every_class_of_shapes_each_once(name: str) -> None:
    grouping = stages() if name == "Stages" else group_operators(graph_of(name), INPUTS_ONLY)
    moves = shared_moves(grouping)
    names = {group.name for group in grouping.groups}
    assert len(set(moves)) == len(moves)
    assert [len(move) for move in moves] == sorted((len(move) for move in moves), reverse=True)
    for shapes in {group.shapes for group in grouping.groups}:
        same = frozenset(group.name for group in grouping.groups if group.shapes == shapes)
        assert same in moves or same == names
    assert all(move and move < names for move in moves)  # all at once is the other uniform choice
    assert sorted(name for move in single_moves(grouping) for name in move) == sorted(names)


def test_moves_are_blocks_roles_and_kinds() -> None:
    moves = set(shared_moves(stages()))
    inside = [[f"blocks.{block}.{part}/conv2d#0" for part in range(3)] for block in range(3)]
    assert {frozenset(block) for block in inside} <= moves
    depthwise = frozenset(block[1] for block in inside)
    assert depthwise in moves
    assert frozenset(one for block in inside for one in block) in moves  # all blocks
    dense = {"stem/conv2d#0"} | {block[part] for block in inside for part in (0, 2)}
    assert frozenset(dense) in moves


# Recipes for choices


def pictures(graph: Graph) -> dict[str, Tensor]:
    return {graph.inputs[0].name: torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(5))}


@cache
def assignments(name: str, rules_name: str) -> Assignments:
    graph, rules = graph_of(name), RULES[rules_name]
    planned = Nearest().plan(graph, [pictures(graph)], place(graph, rules, W8A8), rng=generator(0, name))
    return Assignments(graph, rules, group_operators(graph, rules), planned)


def uniform(one: Assignments, precision: str) -> dict[str, str]:
    return {group.name: precision for group in one.grouping.groups}


def same_grid(one: Grid, other: Grid) -> bool:
    assert isinstance(one, Affine)
    assert isinstance(other, Affine)
    told = (one.bits, one.signed, one.axis, one.narrow) == (other.bits, other.signed, other.axis, other.narrow)
    return told and torch.equal(one.scale, other.scale) and torch.equal(one.zero_point, other.zero_point)


@pytest.mark.parametrize("rules", RULES)
@every_network
def test_the_uniform_choice_is_the_planned_recipe(name: str, rules: str) -> None:
    one = assignments(name, rules)
    planned = {edit.site: edit.grid for edit in one.planned.rounds}
    rounds = {edit.site: edit.grid for edit in one.rounds(uniform(one, "w8a8"))}
    assert set(rounds) == set(planned)
    assert all(same_grid(rounds[site], grid) for site, grid in planned.items())
    assert one.rounds(uniform(one, FLOAT)) == ()
    assert one.rounds({}) == ()  # groups that are left out stay float
    everything = one.recipe(uniform(one, "w8a8"))
    assert len(everything.edits) == len(one.planned.edits)
    assert everything.signature == one.planned.signature
    nothing = one.recipe(uniform(one, FLOAT))
    assert nothing.edits == tuple(edit for edit in one.planned.edits if not isinstance(edit, Round))


@cache
def flips(name: str, rules: str) -> frozenset[Site]:
    """Sites of both uniform choices and of every single flip from each."""
    one = assignments(name, rules)
    choices = []
    for precision, other in (("w8a8", FLOAT), (FLOAT, "w8a8")):
        start = uniform(one, precision)
        choices += [start, *({**start, group: other} for group in start)]
    every = one.every_site(choices)
    sites = [edit.site for edit in every.rounds]
    assert len(set(sites)) == len(sites)
    return frozenset(sites)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(NETWORKS)), st.sampled_from(sorted(RULES)), st.data())
def test_single_flips_show_every_site_of_a_mixed_choice(name: str, rules: str, data: st.DataObject) -> None:
    one = assignments(name, rules)
    choice = {group.name: data.draw(st.sampled_from(["w8a8", FLOAT])) for group in one.grouping.groups}
    rounds = one.rounds(choice)
    assert {edit.site for edit in rounds} <= flips(name, rules)
    assert {edit.site: edit.grid.bits for edit in rounds if isinstance(edit.grid, Affine)} == {
        site: wanted.bits for site, wanted in one.precision(choice).items()
    }
    weights = {edit.site.operator for edit in rounds if edit.site.port == "weight"}
    chosen = {each for group in one.grouping.groups if choice[group.name] != FLOAT for each in group.operators}
    assert weights == {each for each in chosen if "conv2d" in each or "linear" in each}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(NETWORKS)), st.sampled_from(sorted(RULES)), st.data())
def test_sites_of_a_group_are_rounds_that_it_reads(name: str, rules: str, data: st.DataObject) -> None:
    one = assignments(name, rules)
    choice = {group.name: data.draw(st.sampled_from(["w8a8", FLOAT])) for group in one.grouping.groups}
    rounds = one.rounds(choice)
    owner = Counter[Site]()
    for group in one.grouping.groups:
        sites = one.sites_of(group.name, rounds)
        assert sites <= {edit.site for edit in rounds}
        own = {edit.site for edit in rounds if edit.site.operator in group.operators and edit.site.port != "output"}
        assert own <= sites
        if choice[group.name] != FLOAT and name not in CONCATENATED:
            assert any(site.port != "weight" for site in sites)
        owner.update(site for site in sites if site.port == "weight")
    assert set(owner.values()) <= {1}


@pytest.mark.parametrize("rules", RULES)
def test_sites_of_by_hand(rules: str) -> None:
    one = assignments("Residual", rules)
    rounds = one.rounds(uniform(one, "w8a8"))
    read = {"two/conv2d#0:weight", "/relu#1:output", "two/conv2d#0:output", "/relu#0:output"}
    assert ports(one.sites_of("two/conv2d#0", rounds)) == read
    # Behind a max pool, which only carries values on.
    assert ports(one.sites_of("/mean#0", rounds)) == {"head/linear#0:weight", "/relu#2:output", "/mean#0:output"}


@pytest.mark.parametrize("rules", RULES)
@every_network
def test_recipes_of_mixed_choices_are_carried_out(name: str, rules: str) -> None:
    one = assignments(name, rules)
    rng = np.random.default_rng(3)
    before = {name: value.clone() for name, value in one.graph.module.state_dict().items()}
    choice = {group.name: str(rng.choice(["w8a8", FLOAT])) for group in one.grouping.groups}
    mixed = realise(one.graph, one.recipe(choice))
    x = pictures(one.graph)[one.graph.inputs[0].name]
    with torch.no_grad():
        assert torch.isfinite(mixed.module(x)).all()
    after = one.graph.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_other_bits_get_their_grid_from_the_same_range() -> None:
    one = assignments("Residual", "openvino")
    wide = {edit.site: edit.grid for edit in one.planned.rounds}
    for edit in one.rounds(uniform(one, "w4a6")):
        grid, base = edit.grid, wide[edit.site]
        assert isinstance(grid, Affine)
        assert isinstance(base, Affine)
        assert grid.bits == (4 if edit.site.port == "weight" else 6)
        if edit.site.port != "weight" and int(base.zero_point) == 0:  # without rounding of the zero point
            # A signed grid has one code more below zero than above it.
            highest, near = float(base.scale) * base.codes[1], 1 / base.codes[1] if base.signed else 1e-5
            assert float(grid.scale) * grid.codes[1] == pytest.approx(highest, rel=1.001 * near)


def test_a_tensor_without_a_range_is_refused() -> None:
    graph = graph_of("Residual")
    grouping = group_operators(graph, INPUTS_ONLY)
    empty = Assignments(graph, INPUTS_ONLY, grouping, Recipe((), signature(graph)))
    with pytest.raises(BadInput, match="plan with that site"):
        empty.rounds({group.name: "w8a8" for group in grouping.groups})
