"""Constants of an ONNX graph: one owner each, and computed once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_SMALL = 1 << 16
"""Constants up to this many values are copied so that each operator owns its own."""


class Names:
    """Hands out value names that nothing in a graph has yet."""

    def __init__(self, graph: ir.Graph) -> None:
        self._taken = {value.name for value in [*graph.inputs, *graph.initializers.values()]}
        self._taken |= {out.name for node in graph for out in node.outputs}

    def free(self, name: str) -> str:
        """Return `name`, numbered when it is taken, and take it."""
        number, free = 1, name
        while free in self._taken:
            number += 1
            free = f"{name}_{number}"
        self._taken.add(free)
        return free


def plain_path(path: str) -> str:
    """Return a parameter's or module's path without the prefix of the wrapper that capture puts around a model."""
    return path.removeprefix("inner.") if path != "inner" else ""


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """Return the array of an initializer, None for anything that is computed."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def add_constant(graph: ir.Graph, names: Names, name: str, array: np.ndarray) -> ir.Value:
    """Add an initializer to `graph` under `name` or the next free one."""
    name = names.free(name)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def fold_transposes(graph: ir.Graph, names: Names) -> None:
    """Transpose weights, and codes under a DequantizeLinear, once here instead of at every load."""
    for node in list(graph):
        if node.op_type != "Transpose":
            continue
        source = node.inputs[0]
        assert source is not None
        above = source.producer()
        rounded = above if above is not None and above.op_type == "DequantizeLinear" else None
        stored = rounded.inputs[0] if rounded is not None else source
        array = constant_of(stored)
        if stored is None or array is None:
            continue
        order = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else [*range(array.ndim)][::-1]
        turned = np.ascontiguousarray(array.transpose(order))
        result = add_constant(graph, names, f"{stored.name}_transposed", turned)
        if rounded is not None:
            kept = [
                ir.AttrInt64("axis", order.index(a.as_int())) for a in rounded.attributes.values() if a.name == "axis"
            ]
            codes = result
            result = ir.Value(name=names.free(f"{source.name}_transposed"), shape=node.outputs[0].shape)
            twin = ir.Node("", "DequantizeLinear", [codes, *rounded.inputs[1:]], kept, outputs=[result])
            graph.insert_before(node, twin)
        node.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        if rounded is not None and not rounded.outputs[0].uses():
            graph.remove(rounded, safe=True)


def own_constants(graph: ir.Graph, names: Names) -> None:
    """Give each operator its own copy of every small constant, and of a weight's DequantizeLinear, in place.

    The exporter merges equal initializers; a bias that two convolutions share stops OpenVINO from fusing both
    (docs/decisions/0002-placement.md). The two halves of one round keep their common scale.
    """
    for node in list(graph):
        if node.op_type == "DequantizeLinear" and constant_of(node.inputs[0]) is not None:
            for user, index in _in_order(graph, node.outputs[0])[1:]:
                out = ir.Value(name=names.free(str(node.outputs[0].name)), shape=node.outputs[0].shape)
                twin = ir.Node("", node.op_type, node.inputs, list(node.attributes.values()), outputs=[out])
                graph.insert_before(user, twin)
                user.replace_input_with(index, out)
    for name, value in list(graph.initializers.items()):
        array = constant_of(value)
        if array is None or array.size > _SMALL:
            continue
        owners: dict[ir.Node, ir.Value] = {}
        for user, index in _in_order(graph, value):
            round_start = user.inputs[0].producer() if user.op_type == "DequantizeLinear" and user.inputs[0] else None
            owner = round_start if round_start in owners else user
            if not owners:
                owners[user] = value
            elif owner not in owners:
                owners[owner] = add_constant(graph, names, name, array)
            if owners[owner] is not value:
                user.replace_input_with(index, owners[owner])


def drop_empty_pads(graph: ir.Graph) -> None:
    """Remove paddings by nothing: ONNX Runtime keeps them, and sees no round behind them."""
    for node in list(graph):
        if node.op_type != "Pad":
            continue
        source, widths = node.inputs[0], constant_of(node.inputs[1])
        if source is not None and widths is not None and not widths.any():
            node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
            graph.remove(node, safe=True)


def drop_unused(graph: ir.Graph) -> None:
    """Remove initializers that no operator reads."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _in_order(graph: ir.Graph, value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Return the readers of `value` with the input they read it at, in execution order."""
    uses = {(use.node, use.idx) for use in value.uses()}
    nodes = {node for node, _ in uses}
    ordered = [node for node in graph if node in nodes] if len(nodes) > 1 else list(nodes)
    return [(node, index) for node in ordered for index in range(len(node.inputs)) if (node, index) in uses]
