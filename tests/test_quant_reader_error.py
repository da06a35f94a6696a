"""What rounding one site does to its readers: held against networks with that one round, and kept by migrations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers_graphs import captured, inputs_of

from seatrial.core.chance import generator
from seatrial.core.graph import Graph
from seatrial.core.insert_round import fake
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits
from seatrial.core.realise import realise
from seatrial.core.recipe import Affine, Migrate, Recipe, Replace, Round
from seatrial.core.sites import operators, signature, site_of
from seatrial.numerics.observe import watch
from seatrial.quant import reader_error
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place
from seatrial.quant.reader_error import reader_errors
from seatrial.quant.site_error import site_errors

RULES = PlacementRules("torch", "by-range", operator_outputs=False)
EVERYWHERE = PlacementRules("torch", "by-range", operator_outputs=False, attention_products="all")
READERS = {
    "image/placeholder#0:output": "/sub#0",
    "blocks.0.norm1/layer_norm#0:output": "blocks.0.attn.qkv/linear#0",
    "blocks.0.attn/matmul#1:output": "blocks.0.attn.proj/linear#0",  # behind moves
    "blocks.1.mlp.act/gelu#0:output": "blocks.1.mlp.fc2/linear#0",
    "/select#0:output": "head/linear#0",
}


def planned(graph: Graph, name: str, rules: PlacementRules = RULES) -> Recipe:
    asked = place(graph, rules, Bits(4, 4))
    return Nearest(bias_correction=False).plan(graph, [inputs_of(name)], asked, rng=generator(0))


def computed(graph: Graph, operator: str, name: str) -> np.ndarray:
    seen: list[Tensor] = []
    batches = [inputs_of(name, seed) for seed in (0, 1)]
    watch(graph, batches, {operators(graph)[operator]: lambda value: seen.append(value.clone())})
    return torch.cat(seen).double().numpy()


def test_a_reader_is_compared_with_itself_in_a_network_with_that_one_round() -> None:
    graph = captured("vit")
    recipe = planned(graph, "vit")
    found = reader_errors(graph, recipe, [inputs_of("vit", seed) for seed in (0, 1)])
    assert list(found) == [str(edit.site) for edit in recipe.rounds]
    tried = 0
    for edit in recipe.rounds:
        own = edit.site.operator if edit.site.port == "weight" else READERS.get(str(edit.site))
        if own is None or own not in operators(graph):
            continue
        alone = realise(graph, Recipe((edit,), recipe.signature))
        whole, near = computed(graph, own, "vit"), computed(alone, own, "vit")
        wanted = 10 * math.log10((whole**2).sum() / ((near - whole) ** 2).sum())
        assert found[str(edit.site)] == pytest.approx(wanted, abs=0.01)
        tried += 1
    assert tried >= 13


def test_all_readers_of_a_tensor_count() -> None:
    graph = captured("llama")
    recipe = planned(graph, "llama")
    (edit,) = [one for one in recipe.rounds if str(one.site) == "model.layers.0.input_layernorm/mul#1:output"]
    alone = realise(graph, Recipe((edit,), recipe.signature))
    signal = noise = 0.0
    for reader in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.0.self_attn.{reader}/linear#0"
        whole, near = computed(graph, name, "llama"), computed(alone, name, "llama")
        signal, noise = signal + (whole**2).sum(), noise + ((near - whole) ** 2).sum()
    found = reader_errors(graph, recipe, [inputs_of("llama", seed) for seed in (0, 1)])
    assert found[str(edit.site)] == pytest.approx(10 * math.log10(signal / noise), abs=0.01)


def test_a_migration_that_rounds_alike_changes_no_reader() -> None:
    """A shift by whole steps of the grid rounds each value as before; the tensor's own ratio tells another story."""
    graph, name = captured("vit"), "blocks.1.norm2/layer_norm#0"
    site, batch = site_of(name, "output"), [inputs_of("vit")]
    scale = 2.0**-5
    grid = Affine(16, True, torch.tensor(scale), torch.tensor(0))
    consumer = site_of("blocks.1.mlp.fc1/linear#0", "output")
    shift = Migrate(site, (consumer,), torch.full((32,), 400 * scale), torch.ones(32))
    plain, moved = (Recipe((*edits, Round(site, grid)), signature(graph)) for edits in ((), (shift,)))
    before, after = (reader_errors(graph, recipe, batch)[str(site)] for recipe in (plain, moved))
    assert before is not None
    assert after == pytest.approx(before, abs=0.05)
    own = [site_errors(graph, recipe, batch)[0].sqnr_db or 0.0 for recipe in (plain, moved)]
    assert own[1] > own[0] + 15


@pytest.mark.parametrize("name", ["bert", "opt"])
def test_masks_and_moves_count_as_nothing(name: str) -> None:
    """At 4 bits what reads a site loses something, and never as little as a score of -3e38 would make of it."""
    graph = captured(name)
    found = reader_errors(graph, planned(graph, name, EVERYWHERE), [inputs_of(name)])
    assert found
    levels = [level for level in found.values() if level is not None]
    assert len(levels) >= 0.9 * len(found)
    assert all(-10 < level < 70 for level in levels)


def test_sums_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = captured("bert")
    recipe = planned(graph, "bert")
    whole = reader_errors(graph, recipe, [inputs_of("bert")])
    monkeypatch.setattr(reader_error, "_PIECE", 13)
    assert reader_errors(graph, recipe, [inputs_of("bert")]) == pytest.approx(whole, rel=1e-9)


def test_a_site_that_loses_nothing_has_no_figure() -> None:
    """The second rounding to one grid changes nothing."""
    graph, batch = captured("vit"), [inputs_of("vit")]
    (edit,) = [one for one in planned(graph, "vit").rounds if str(one.site) == "head/linear#0:weight"]
    parameter = operators(graph)["head/linear#0"].args[1]
    weight = graph.module.get_parameter(str(parameter.target))  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    rounded = fake(weight.detach(), edit.grid)
    both = Recipe((Replace(edit.site, rounded), edit), signature(graph))
    assert reader_errors(graph, both, batch) == {"head/linear#0:weight": None}
    assert reader_errors(graph, Recipe((), signature(graph)), batch) == {}
