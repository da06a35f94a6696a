"""The sigmoids that ONNX Runtime gets rounded, in the simulation."""

from __future__ import annotations

import torch
from torch import fx

from seatrial.core.constants import constant
from seatrial.core.graph import Graph, copied, finished
from seatrial.core.sites import op_name
from seatrial.deploy.onnx_integer_kernels import SIGMOID_STEP

aten = torch.ops.aten


def rounded_sigmoids(graph: Graph) -> Graph:
    """Return a graph whose swishes x * sigmoid(x) between two rounds of 8 bits round the sigmoid to steps of 1/256.

    It is what `onnx_integer_kernels.round_sigmoids` writes into the file. x * sigmoid(x) errs by |x| / 512 at most,
    half a step of an 8-bit grid from 0 to |x|. Departures: a grid that no quantizer plans, because its range is known.
    """
    if not any(_swished(node) for node in graph.nodes()):
        return graph
    new = copied(graph)
    nodes = new.module.graph
    for node in list(nodes.nodes):
        x = _swished(node)
        if x is None:
            continue
        with nodes.inserting_before(node):
            gate = nodes.call_function(aten.sigmoid.default, (x,))
            scale = constant(new.module, "sigmoid_scale", torch.tensor(SIGMOID_STEP), node)
            zero = constant(new.module, "sigmoid_zero_point", torch.tensor(0), node)
            rounded = nodes.call_function(torch.ops.seatrial.qdq.default, (gate, scale, zero, 0, 255, -1))
            product = nodes.call_function(aten.mul.Tensor, (x, rounded))
        for part in (gate, rounded, product):
            part.meta = {name: value for name, value in node.meta.items() if name != "site"}
        node.replace_all_uses_with(product)
    nodes.eliminate_dead_code()
    return finished(new)


def _swished(node: fx.Node) -> fx.Node | None:
    """Return the rounded x of x * sigmoid(x) that is rounded again."""
    kind, read = op_name(node), [argument for argument in node.args if isinstance(argument, fx.Node)]
    if kind == "mul" and len(read) == 2:
        gates = [one for one in read if op_name(one) == "sigmoid" and len(one.users) == 1]
        x = next((one for one in read if any(gate.args[0] is one for gate in gates)), None)
    else:
        x = read[0] if kind == "silu" else None
    if x is None or not _in_bytes(x) or not node.users or not all(_in_bytes(user) for user in node.users):
        return None
    return x


def _in_bytes(node: fx.Node) -> bool:
    return op_name(node) == "qdq" and bool(node.args[5] == -1 and node.args[3] == 0) and int(str(node.args[4])) <= 255
