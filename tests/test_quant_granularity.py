"""Granularity: which scales a site gets, and that finer ones lose less."""

from __future__ import annotations

import pytest
from transformers_graphs import captured, inputs_of

from seatrial.core.chance import generator
from seatrial.core.grids import Affine, Dynamic, Grouped
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits
from seatrial.core.recipe import Recipe
from seatrial.errors import BadInput
from seatrial.numerics.ranges import MinMax
from seatrial.quant.granularity import Granularity
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place
from seatrial.quant.site_error import site_errors

RULES = PlacementRules("torch", "by-range", operator_outputs=False, attention_products="all")
PLAIN = Nearest(MinMax(), bias_correction=False, equalization="none")


def recipe(name: str, weights: str, activations: str) -> Recipe:
    graph = captured(name)
    wanted = Granularity.parse(weights, activations).of(graph, place(graph, RULES, Bits(6, 6)))
    return PLAIN.plan(graph, [inputs_of(name)], wanted, rng=generator(0))


def test_scales_of_weights() -> None:
    weights = {"tensor": Affine, "channel": Affine, "group:8": Grouped}
    for text, kind in weights.items():
        rounds = [edit for edit in recipe("llama", text, "tensor").rounds if edit.site.port == "weight"]
        assert all(isinstance(edit.grid, kind) for edit in rounds)
        scalar = [isinstance(edit.grid, Affine) and edit.grid.axis is None for edit in rounds]
        assert all(scalar) if text == "tensor" else not any(scalar)


def test_scales_of_tokens_leave_products_of_attentions_float() -> None:
    static, tokens = recipe("bert", "channel", "tensor"), recipe("bert", "channel", "token")
    products = [edit for edit in static.rounds if "softmax" in str(edit.site)]
    kept = {edit.site for edit in tokens.rounds}
    assert products
    assert not kept & {edit.site for edit in products}
    assert {site.operator.rsplit("/", 1)[1] for site in kept if site.port != "weight"} == {"linear#0"}
    assert {site.port for site in kept} == {"weight", "input0"}
    rounded = [edit.grid for edit in tokens.rounds if edit.site.port != "weight"]
    assert rounded
    assert all(isinstance(grid, Dynamic) and grid.group is None for grid in rounded)
    groups = [edit.grid for edit in recipe("bert", "channel", "group:8").rounds if edit.site.port != "weight"]
    assert all(isinstance(grid, Dynamic) and grid.group == 8 for grid in groups)


def test_finer_scales_of_weights_lose_less() -> None:
    graph = captured("llama")
    lost = []
    for text in ("tensor", "channel", "group:8"):
        errors = site_errors(graph, recipe("llama", text, "tensor"), [inputs_of("llama")])
        weights = [error.sqnr_db for error in errors if error.site.port == "weight" and error.sqnr_db is not None]
        lost.append(sum(weights) / len(weights))
    assert lost[0] < lost[1] < lost[2]


@pytest.mark.parametrize("text", ["row", "group", "group:1", "group:x", "token"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="group:N"):
        Granularity.parse(text, "tensor")
