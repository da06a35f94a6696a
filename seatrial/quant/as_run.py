"""A recipe as a runtime carries it out, where that is not what the file says."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.realise import realise
from seatrial.core.recipe import Affine, Recipe, Replace, Round
from seatrial.core.sites import Site, attribute, op_name, operators, site_of
from seatrial.quant.placement import CARRIES


def as_run(graph: Graph, recipe: Recipe, rules: PlacementRules) -> Recipe:
    """Return `recipe` with the departures of a runtime with these rules, so that the simulation makes them too.

    Any quantizer's recipe can be given; grids stay as they are. What is simulated differently, and how it was found
    out: docs/decisions/0006-as-run.md.
    """
    if not rules.rounds_before_sums:
        recipe = _with_open_sums(graph, recipe)
    return _with_integer_biases(graph, recipe) if rules.integer_biases else recipe


def _with_open_sums(graph: Graph, recipe: Recipe) -> Recipe:
    """Leave the fractions of convolutions that are fused with the residual sum that alone reads them."""
    names = {node: name for name, node in operators(graph).items()}
    fused: set[Site] = set()
    for node in names:
        if op_name(node) == "add":
            convolutions = [read for read in node.args[:2] if isinstance(read, fx.Node) and _only_summed(read)]
            fused |= {site_of(names[first], "output") for first in convolutions[:1]}
    edits = [
        Round(edit.site, replace(edit.grid, rounds=False))
        if isinstance(edit, Round) and edit.site in fused and isinstance(edit.grid, Affine)
        else edit
        for edit in recipe.edits
    ]
    return replace(recipe, edits=tuple(edits))


def _only_summed(node: fx.Node) -> bool:
    return op_name(node) == "conv2d" and len([user for user in node.users if op_name(user) != "sym_size"]) == 1


def _with_integer_biases(graph: Graph, recipe: Recipe) -> Recipe:
    """Put biases between a rounded input and rounded weights at whole multiples of the product of both steps.

    Convolutions, and linear operators on two dimensions (others are run as a product and a float sum).
    Source: Jacob et al. 2018, section 2.4: S_bias = S_input * S_weight, zero point 0.
    """
    rounded = realise(graph, recipe)
    edits = []
    for name, node in operators(rounded).items():
        bias = node.args[2] if len(node.args) > 2 else None
        kernel = op_name(node) == "conv2d" or (op_name(node) == "linear" and _rank(node) == 2)
        if not kernel or not isinstance(bias, fx.Node) or bias.op != "get_attr":
            continue
        steps = [_step(rounded, node.args[index]) for index in (0, 1)]
        if steps[0] is None or steps[1] is None:
            continue
        step = steps[0] * steps[1]
        codes = (attribute(rounded.module, str(bias.target)).detach() / step).round()
        if float(codes.abs().max()) < 2**31:
            edits.append(Replace(site_of(name, "bias"), codes * step))
    return replace(recipe, edits=(*recipe.edits, *edits))


def _rank(node: fx.Node) -> int:
    return len(getattr(node.meta.get("val"), "shape", ()))


def _step(graph: Graph, value: object) -> Tensor | None:
    """Return the scale of the round in front of an operator, behind what only carries values."""
    while isinstance(value, fx.Node) and op_name(value) in CARRIES:
        value = value.args[0]
    if not isinstance(value, fx.Node) or op_name(value) != "qdq" or not isinstance(value.args[1], fx.Node):
        return None
    return attribute(graph.module, str(value.args[1].target))
