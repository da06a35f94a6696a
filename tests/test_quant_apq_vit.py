"""APQ-ViT: blocks by the graph, the loss of a block as the whole network has it, and grids that never make it worse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers_graphs import captured, inputs_of

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits, Precision
from seatrial.core.realise import realise
from seatrial.core.recipe import Affine, FloatType, Recipe, Round
from seatrial.core.sites import Site, operators, signature
from seatrial.errors import BadInput
from seatrial.numerics.observe import tensors_of, watch
from seatrial.numerics.ranges import MinMax
from seatrial.numerics.walk import Walk
from seatrial.quant import apq_vit
from seatrial.quant.apq_vit import APQViT
from seatrial.quant.block_error import BlockError
from seatrial.quant.block_search import scaled
from seatrial.quant.blocks import Block, blocks_of
from seatrial.quant.coarse_to_fine import least_step
from seatrial.quant.loss_gradients import loss_gradients
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place
from seatrial.quant.rounded_block import RoundedBlock, RoundedNetwork, Values

RULES = PlacementRules("torch", "by-range", operator_outputs=False, attention_products="all")
ON_OUTPUTS = PlacementRules("outputs", "by-range", operator_outputs=True, attention_products="all")
PLAIN = Nearest(MinMax(), bias_correction=False, equalization="none")


def asked(graph: Graph, bits: str = "w4a4", rules: PlacementRules = RULES) -> dict[Site, Precision]:
    return place(graph, rules, Bits.parse(bits))


def calibration(name: str, count: int = 8) -> list[Tensor | dict[str, Tensor]]:
    return [inputs_of(name, seed, count) for seed in (5, 6)]


def value_at(graph: Graph, name: str, inputs: Tensor | dict[str, Tensor]) -> Tensor:
    """What an operator gives, with a round behind it if there is one."""
    node, seen = operators(graph)[name], list[Tensor]()
    behind = [user for user in node.users if user.meta.get("site") == f"{name}:output"]
    watch(graph, [inputs], {(behind or [node])[0]: seen.append})
    return seen[0]


def shown(graph: Graph, rules: PlacementRules = RULES) -> list[tuple[str, str]]:
    """The first and the last operator of each block of several."""
    blocks = blocks_of(graph, {site.operator: None for site in asked(graph, rules=rules)})
    return [(block.operators[0], block.output) for block in blocks if len(block.operators) > 1]


# Blocks


def test_the_blocks_of_a_vision_transformer_are_its_attentions_and_feed_forward_parts() -> None:
    found = [(first.split("/")[0], last) for first, last in shown(captured("vit"))]
    assert found == [
        ("blocks.0.norm1", "blocks.0/add#0"),
        ("blocks.0.norm2", "blocks.0/add#1"),
        ("blocks.1.norm1", "blocks.1/add#0"),
        ("blocks.1.norm2", "blocks.1/add#1"),
    ]


@pytest.mark.parametrize("name", ["vit", "swin", "bert", "opt", "bloom", "llama"])
@pytest.mark.parametrize("rules", [RULES, ON_OUTPUTS], ids=["inputs", "outputs"])
def test_every_rounded_operator_lies_in_one_block(name: str, rules: PlacementRules) -> None:
    graph = captured(name)
    rounded = {site.operator: None for site in asked(graph, rules=rules)}
    blocks = blocks_of(graph, rounded)
    inside = [one for block in blocks for one in block.operators]
    assert len(inside) == len(set(inside))
    assert set(rounded) <= set(inside)
    assert sum(len(block.operators) > 4 for block in blocks) == {"swin": 8}.get(name, 4) - 2 * (name == "bert")
    order = list(operators(graph))
    ends = [order.index(block.output) for block in blocks]
    assert ends == sorted(ends)
    for block in blocks:
        places = [order.index(one) for one in block.operators]
        assert places == sorted(places)


class Bottleneck(nn.Module):
    """A residual branch with a shortcut of its own, and a sum of two branches in which a further sum lies."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.short, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        inner = x + self.two(self.one(x).relu())
        return self.head(self.short(x) + inner.relu())


def test_of_sums_inside_of_sums_the_inner_one_is_a_block() -> None:
    graph = capture(Bottleneck(), torch.randn(4, 6))
    blocks = blocks_of(graph, {name: None for name in operators(graph) if "linear" in name})
    assert [block.operators for block in blocks] == [
        ("one/linear#0", "/relu#0", "two/linear#0", "/add#0"),
        ("short/linear#0",),
        ("head/linear#0",),
    ]


# One block against the whole network


@pytest.mark.parametrize(("name", "rules"), [("vit", RULES), ("swin", RULES), ("vit", ON_OUTPUTS), ("bert", RULES)])
def test_a_block_gives_what_the_whole_network_gives_there(name: str, rules: PlacementRules) -> None:
    """Oracle: the rounds of one block alone, one of them with another grid, carried out in the whole graph."""
    graph, inputs = captured(name), inputs_of(name, 5)
    start = PLAIN.plan(graph, [inputs], asked(graph, rules=rules), rng=generator(0))
    named, batch = operators(graph), tensors_of(graph, inputs)
    blocks = [block for block in blocks_of(graph, {e.site.operator: None for e in start.rounds}) if block.operators[1:]]
    for block in blocks[-2:]:
        own = Recipe(tuple(e for e in start.rounds if e.site.operator in block.operators), signature(graph))
        network, walk = RoundedNetwork.of(graph, own), Walk(graph, [batch])
        back = {node: name for name, node in network.operators.items() if name in named}
        part = RoundedBlock(network, block, lambda node, b=back, w=walk: w.values(named[b[node]])[0])
        assert torch.equal(part.output, value_at(realise(graph, own), block.output, inputs))
        for site in part.sites[::2]:
            grid = scaled(part.grid(site), 0.4)
            edits = [Round(e.site, grid) if e.site == site else e for e in own.rounds]
            whole = realise(graph, Recipe(tuple(edits), signature(graph)))
            assert torch.equal(part.tried(site, grid), value_at(whole, block.output, inputs))
        kept = part.sites[len(part.sites) // 2]
        grid = scaled(part.grid(kept), 0.5)
        part.put(kept, grid)
        edits = [Round(e.site, grid) if e.site == kept else e for e in own.rounds]
        whole = realise(graph, Recipe(tuple(edits), signature(graph)))
        assert torch.equal(part.output, value_at(whole, block.output, inputs))
        assert torch.equal(value_at(network.graph, block.output, inputs), part.output)


def test_rounds_to_narrow_floats_inside_a_block_stand_where_they_are() -> None:
    """Oracle: as above; what a candidate changes goes through a round to bf16 behind it."""
    graph, inputs, gelu = captured("vit"), inputs_of("vit", 5), "blocks.0.mlp.act/gelu#0"
    start = PLAIN.plan(graph, [inputs], asked(graph), rng=generator(0))
    edits = [Round(e.site, FloatType("bf16")) if str(e.site) == f"{gelu}:output" else e for e in start.rounds]
    (block,) = [one for one in blocks_of(graph, {e.site.operator: None for e in edits}) if gelu in one.operators]
    own = [edit for edit in edits if edit.site.operator in block.operators]
    assert any(isinstance(edit.grid, FloatType) for edit in own)
    named, walk = operators(graph), Walk(graph, [tensors_of(graph, inputs)])
    network = RoundedNetwork.of(graph, Recipe(tuple(own), signature(graph)))
    back = {node: name for name, node in network.operators.items() if name in named}
    part = RoundedBlock(network, block, lambda node: walk.values(named[back[node]])[0])
    (first,) = [site for site in part.sites if str(site).endswith("fc1/linear#0:weight")]
    grid = scaled(part.grid(first), 0.4)
    changed = [Round(first, grid) if edit.site == first else edit for edit in own]
    whole = realise(graph, Recipe(tuple(changed), signature(graph)))
    assert torch.equal(part.tried(first, grid), value_at(whole, block.output, inputs))


# Errors and searches


@given(st.integers(0, 2**32), st.sampled_from(["errors", "terms", "above-step", "all"]), st.floats(0.01, 1))
def test_the_error_of_a_block_is_its_formula(seed: int, kept: str, share: float) -> None:
    rng = np.random.default_rng(seed)
    output, wanted, gradient = (rng.normal(size=(3, 4, 5)).astype(np.float32) for _ in range(3))
    told = BlockError(kept, share).of(*(torch.from_numpy(x) for x in (output, wanted, gradient)), step=1.0)  # pyright: ignore[reportArgumentType]
    total = 0.0
    for error, slope in zip((output - wanted).reshape(3, -1), gradient.reshape(3, -1), strict=True):
        terms = (error * slope) ** 2
        count = max(1, round(share * len(terms)))
        if kept == "errors":
            terms = terms[np.argsort(-np.abs(error))[:count]]
        elif kept == "terms":
            terms = np.sort(terms)[::-1][:count]
        elif kept == "above-step":
            terms = terms[np.abs(error) > 0.5]
        total += float(terms.sum(dtype=np.float64))
    assert told == pytest.approx(total / 3, rel=1e-5, abs=1e-12)


@given(st.integers(1, 130), st.integers(0, 2**32))
def test_a_full_search_finds_the_least_and_a_coarse_one_none_below(steps: int, seed: int) -> None:
    losses = np.random.default_rng(seed).uniform(size=steps)
    _, least = least_step(lambda tried: [losses[step - 1] for step in tried], steps, full=True)
    assert least == losses.min()
    step, found = least_step(lambda tried: [losses[step - 1] for step in tried], steps)
    assert found == losses[step - 1] >= least


# Plans


def block_losses(graph: Graph, name: str, recipe: Recipe, error: BlockError) -> list[float]:
    """The loss of each block with its own rounds alone, in the whole graph."""
    (inputs,) = [inputs_of(name, 5, 8)]
    named = operators(graph)
    blocks = blocks_of(graph, {edit.site.operator: None for edit in recipe.rounds})
    blocks = [block for block in blocks if named[block.operators[0]].op != "placeholder"]
    found = []
    with loss_gradients(graph, tensors_of(graph, inputs), [named[block.output] for block in blocks]) as gradients:
        for block in blocks:
            own = tuple(edit for edit in recipe.rounds if edit.site.operator in block.operators)
            made = value_at(realise(graph, Recipe(own, signature(graph))), block.output, inputs)
            found.append(error.of(made, value_at(graph, block.output, inputs), gradients[named[block.output]]))
    return found


@pytest.mark.parametrize("name", ["vit", "bert"])
@pytest.mark.parametrize("error", [BlockError(), BlockError("all")], ids=str)
def test_no_block_gets_worse(name: str, error: BlockError) -> None:
    graph, inputs = captured(name), [inputs_of(name, 5, 8)]
    method = APQViT(PLAIN, error, inputs="float", rounds=1)
    before = PLAIN.plan(graph, inputs, asked(graph), rng=generator(0))
    after = method.plan(graph, inputs, asked(graph), rng=generator(0))
    losses = [block_losses(graph, name, recipe, error) for recipe in (before, after)]
    assert all(new <= old * (1 + 1e-6) for old, new in zip(*losses, strict=True))
    ratios = [new / old for old, new in zip(*losses, strict=True) if old > 0]
    assert np.exp(np.mean(np.log(ratios))) < 0.8


def test_a_softmax_keeps_its_largest_value() -> None:
    """The top code decodes to at least the largest probability of the calibration data (MPQ)."""
    graph = captured("vit")
    wanted = {site: precision for site, precision in asked(graph).items() if "softmax" in str(site)}
    for softmax in ("preserving", "map-error"):
        recipe = APQViT(softmax=softmax, rounds=2).plan(graph, calibration("vit"), wanted, rng=generator(0))
        grids = {str(edit.site): edit.grid for edit in recipe.rounds}
        assert len(grids) == 2
        for name, grid in grids.items():
            seen: list[Tensor] = []
            watch(graph, calibration("vit"), {operators(graph)[name.partition(":")[0]]: seen.append})
            assert isinstance(grid, Affine)
            assert not grid.signed
            assert float(grid.scale) * 15 >= max(float(value.max()) for value in seen) * (1 - 1e-6)


def test_equal_chance_gives_equal_recipes_and_samples_are_drawn() -> None:
    graph = captured("vit")

    def scales(seed: int) -> list[Tensor]:
        recipe = APQViT(rounds=1, samples=5).plan(graph, calibration("vit"), asked(graph), rng=generator(seed))
        return [edit.grid.scale.reshape(-1) for edit in recipe.rounds if isinstance(edit.grid, Affine)]

    one, same, other = (torch.cat(scales(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("mode", ["float", "rounded"])
def test_blocks_read_what_the_option_says(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: what the float network, or the network with all rounds of the recipe, gives before the last block."""
    graph, inputs, name = captured("vit"), inputs_of("vit", 5, 8), "blocks.1/add#0"
    read: list[Tensor] = []

    def watched(network: RoundedNetwork, block: Block, values: Values) -> RoundedBlock:
        if block.output == "blocks.1/add#1":
            read.append(values(network.operators[name]).clone())
        return RoundedBlock(network, block, values)

    monkeypatch.setattr(apq_vit, "RoundedBlock", watched)
    recipe = APQViT(PLAIN, inputs=mode, rounds=1).plan(graph, [inputs], asked(graph), rng=generator(0))  # pyright: ignore[reportArgumentType]
    whole = realise(graph, recipe) if mode == "rounded" else graph
    (found,) = read
    assert torch.allclose(found, value_at(whole, name, inputs), atol=1e-6)


def test_sites_that_are_not_searched_keep_the_grids_they_start_from() -> None:
    graph = captured("vit")
    wanted = asked(graph)
    tied = [site for site in wanted if str(site).endswith("mlp.act/gelu#0:output")]
    assert len(tied) == 2
    wanted |= {site: replace(wanted[site], tie="together") for site in tied}
    start = {e.site: e.grid for e in PLAIN.plan(graph, calibration("vit"), wanted, rng=generator(0)).rounds}
    recipe = APQViT(PLAIN, rounds=1).plan(graph, calibration("vit"), wanted, rng=generator(0))
    found = {e.site: e.grid for e in recipe.rounds}
    assert set(found) == set(wanted) == set(start)
    for site in [*tied, Site.parse("image/placeholder#0:output")]:
        one, other = found[site], start[site]
        assert isinstance(one, Affine)
        assert isinstance(other, Affine)
        assert torch.equal(one.scale, other.scale)


class Maps(nn.Module):
    """A small residual network of pictures that gives a map, as a detector does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.out(x + self.two(self.one(x).relu()))


@pytest.mark.parametrize("bias_correction", [False, True])
def test_a_network_without_classes_is_calibrated_by_plain_errors(bias_correction: bool) -> None:
    torch.manual_seed(0)
    graph = capture(Maps(), torch.rand(2, 3, 16, 16))
    data = [torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    start = Nearest(MinMax(), bias_correction=bias_correction, equalization="none")
    found = APQViT(start).plan(graph, data[:2], asked(graph, "w3a3"), rng=generator(0))
    assert any("errors of a block count alike" in note for note in found.notes)
    wanted = graph.module(data[2])
    errors = [
        float((realise(graph, recipe).module(data[2]) - wanted).square().sum())
        for recipe in (start.plan(graph, data[:2], asked(graph, "w3a3"), rng=generator(0)), found)
    ]
    assert errors[1] < errors[0]


def test_sentences_of_several_lengths_are_drawn_from_the_first_length() -> None:
    graph = captured("bert")
    short = {name: tensor[:, :6] for name, tensor in inputs_of("bert", 6).items()}  # pyright: ignore[reportAttributeAccessIssue]
    recipe = APQViT(PLAIN, rounds=1).plan(graph, [inputs_of("bert", 5), short], asked(graph), rng=generator(0))
    assert {edit.site for edit in recipe.rounds} == set(asked(graph))


def test_what_cannot_be_calibrated_is_said() -> None:
    graph = captured("vit")
    with pytest.raises(BadInput, match="0 rounds"):
        APQViT(rounds=0)
    with pytest.raises(BadInput, match="no calibration data"):
        APQViT().plan(graph, [], asked(graph), rng=generator(0))
    broken = inputs_of("vit").clone()  # pyright: ignore[reportAttributeAccessIssue]
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(BadInput, match="not finite at image/placeholder"):
        APQViT().plan(graph, [broken], asked(graph), rng=generator(0))


def test_a_block_is_the_operators_it_names() -> None:
    assert Block(("a/linear#0", "a/add#0")).output == "a/add#0"
