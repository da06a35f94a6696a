"""Give linear operators of pictures one dimension for all places, for OpenVINO."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from seatrial.core.graph import Graph, copied, finished
from seatrial.core.realise import tensor_inputs
from seatrial.core.sites import op_name, shape_of

aten = torch.ops.aten
_BY_ELEMENT = {"qdq", "narrow_float", "relu", "gelu", "silu", "hardswish", "sigmoid", "tanh", "mul", "add"}


def flat_linears(graph: Graph) -> Graph:
    """Return a graph whose linear operators on [n, h, w, c] run on [n, h * w, c]; the graph itself without such.

    OpenVINO computes the zero point of a rounded input inside the operator only up to three dimensions; with four a
    subtraction of its own follows, which took a sixth of ConvNeXt-Tiny's time. What is computed by element behind it
    stays flat, so that activations and rounds still run inside the operator (docs/decisions/0002-placement.md).
    """
    if not any(_is_spread(node) for node in graph.nodes()):
        return graph
    new = copied(graph)
    nodes = new.module.graph
    flat = dict[fx.Node, fx.Node]()
    """Twins with flat places, by the node that has them spread again."""
    for node in list(nodes.nodes):
        with nodes.inserting_before(node):
            twin = _twin(nodes, node, flat)
            if twin is not None:
                spread = _viewed(nodes, twin, node.meta["val"])
                flat[spread] = twin
                node.replace_all_uses_with(spread)
    nodes.eliminate_dead_code()
    return finished(new)


def _twin(nodes: fx.Graph, node: fx.Node, flat: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """Return the same operator on flat places, None where it should stay."""
    if _is_spread(node):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        read = flat.get(source) or _viewed(nodes, source, _flat_value(source))
    elif op_name(node) in _BY_ELEMENT and node.args[0] in flat and "val" in node.meta and _reads_one(node):
        read = flat[node.args[0]]  # pyright: ignore[reportArgumentType]
    else:
        return None
    twin = nodes.call_function(node.target, (read, *node.args[1:]), node.kwargs)  # pyright: ignore[reportArgumentType]
    twin.meta = {**node.meta, "val": _flat_value(node)}
    return twin


def _is_spread(node: fx.Node) -> bool:
    """Tell whether a node is a linear operator on more than three dimensions, all but the first known."""
    source = node.args[0] if op_name(node) == "linear" else None
    shape = shape_of(source) if isinstance(source, fx.Node) else ()
    return len(shape) > 3 and all(isinstance(dim, int) for dim in shape[1:])


def _reads_one(node: fx.Node) -> bool:
    """Tell whether everything but the first input is a constant for all places."""
    if op_name(node) == "qdq":
        return bool(node.args[5] == -1)
    others = tensor_inputs(node)[1:]
    return all(value.op == "get_attr" and "val" in value.meta and len(shape_of(value)) <= 1 for value in others)


def _viewed(nodes: fx.Graph, node: fx.Node, value: Tensor) -> fx.Node:
    view = nodes.call_function(aten.view.default, (node, [-1, *value.shape[1:]]))
    view.meta = {**node.meta, "val": value}
    return view


def _flat_value(node: fx.Node) -> Tensor:
    value = node.meta["val"]
    return value.reshape(value.shape[0], math.prod(value.shape[1:-1]), value.shape[-1])
