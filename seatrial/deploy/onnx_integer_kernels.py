"""Spell means and swishes as ONNX Runtime's integer kernels look for them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from seatrial.deploy.onnx_constants import Names, add_constant, constant_of

SIGMOID_STEP = 1 / 256
"""Step of a rounded sigmoid, whose values lie between 0 and 1."""


def pool_globally(graph: ir.Graph, names: Names) -> None:
    """Write means over all places of pictures as GlobalAveragePool, in place.

    ReduceMean has no integer kernel, and for a float one ONNX Runtime leaves its blocked layout.
    """
    for node in list(graph):
        source, axes = node.inputs[0] if node.inputs else None, _axes(node)
        if source is None or source.shape is None or len(source.shape) != 4:
            continue
        if axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
            continue
        pooled = ir.Value(name=names.free(f"{node.outputs[0].name}_pooled"))
        pool = ir.Node("", "GlobalAveragePool", [source], outputs=[pooled])
        pool.metadata_props.update(node.metadata_props)
        graph.insert_before(node, pool)
        keeps = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
        end = None if keeps else _round_behind(node.outputs[0])
        if end is not None:  # the kernel wants the round right behind the pooling
            start = end.inputs[0].producer()  # pyright: ignore[reportOptionalMemberAccess]
            start.replace_input_with(0, pooled)  # pyright: ignore[reportOptionalMemberAccess]
            readers = list(end.outputs[0].uses())
            flat = _flattened(graph, names, end)
            for reader, index in readers:
                reader.replace_input_with(index, flat)
        else:
            result = pooled if keeps else _flattened(graph, names, pool)
            result.shape, result.type = node.outputs[0].shape, node.outputs[0].type
            node.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _round_behind(value: ir.Value) -> ir.Node | None:
    """Return the DequantizeLinear of the one round that alone reads a value."""
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        uses = list(value.uses())
        if len(uses) != 1 or uses[0].node.op_type != kind:
            return None
        value = uses[0].node.outputs[0]
    return None if value.is_graph_output() else value.producer()


def _flattened(graph: ir.Graph, names: Names, node: ir.Node) -> ir.Value:
    base = str(node.outputs[0].name)
    flat = ir.Value(name=names.free(f"{base}_flat"))
    shape = add_constant(graph, names, f"{base}_shape", np.asarray([0, -1]))
    graph.insert_after(node, ir.Node("", "Reshape", [node.outputs[0], shape], outputs=[flat]))  # rounds pass a Reshape
    return flat


def _axes(node: ir.Node) -> list[int] | None:
    axes = constant_of(node.inputs[1]) if node.op_type == "ReduceMean" and len(node.inputs) > 1 else None
    return None if axes is None else [int(axis) for axis in axes.reshape(-1)]


def round_sigmoids(graph: ir.Graph, names: Names) -> None:
    """Round the sigmoid of each x * sigmoid(x) between two rounds to 8 bits, in place.

    So ONNX Runtime takes the sigmoid from a table and multiplies integers; between float ones a swish costs a
    dequantization and a round. What it means is in `rounded_sigmoids`.
    """
    for node in list(graph):
        uses = list(node.outputs[0].uses())
        if node.op_type != "Sigmoid" or len(uses) != 1 or not _in_bytes(node.inputs[0]):
            continue
        product, index = uses[0].node, uses[0].idx
        readers = [user for user, _ in product.outputs[0].uses()]
        if product.op_type != "Mul" or node.inputs[0] not in product.inputs or not readers:
            continue
        if not all(reader.op_type == "QuantizeLinear" and _bytes(reader) for reader in readers):
            continue
        base = str(node.outputs[0].name)
        grid = [
            add_constant(graph, names, f"{base}_scale", np.asarray(SIGMOID_STEP, np.float32)),
            add_constant(graph, names, f"{base}_zero_point", np.asarray(0, np.uint8)),
        ]
        codes, rounded = (ir.Value(name=names.free(f"{base}_{what}")) for what in ("codes", "rounded"))
        start = ir.Node("", "QuantizeLinear", [node.outputs[0], *grid], outputs=[codes])
        end = ir.Node("", "DequantizeLinear", [codes, *grid], outputs=[rounded])
        graph.insert_after(node, [start, end])
        product.replace_input_with(index, rounded)


def _in_bytes(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear" and _bytes(producer)


def _bytes(node: ir.Node) -> bool:
    """Tell whether a round has one grid of unsigned 8 bits."""
    zero = constant_of(node.inputs[2])
    return zero is not None and zero.dtype == np.uint8 and zero.size == 1
