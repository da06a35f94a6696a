"""Spell hard sigmoids out for OpenVINO."""

from __future__ import annotations

import torch

from seatrial.core.graph import Graph, copied, finished
from seatrial.core.sites import op_name


def spelled_out(graph: Graph) -> Graph:
    """Return a graph whose hard sigmoids are written clamp(x + 3, 0, 6) / 6; the graph itself where it has none.

    OpenVINO recognizes that and computes it inside the convolution before it. ONNX's HardSigmoid, with its 1/6 rounded
    to float32, it runs as a float operator of its own between two reorders (docs/decisions/0002-placement.md).
    """
    if not any(op_name(node) == "hardsigmoid" for node in graph.nodes()):
        return graph
    new = copied(graph)
    nodes = new.module.graph
    aten = torch.ops.aten
    for node in list(nodes.nodes):
        if op_name(node) != "hardsigmoid":
            continue
        with nodes.inserting_before(node):
            raised = nodes.call_function(aten.add.Tensor, (node.args[0], 3.0))
            clamped = nodes.call_function(aten.hardtanh.default, (raised, 0.0, 6.0))
            result = nodes.call_function(aten.div.Tensor, (clamped, 6.0))
        for part in (raised, clamped, result):
            part.meta = dict(node.meta)
        node.replace_all_uses_with(result)
        nodes.erase_node(node)
    return finished(new)
