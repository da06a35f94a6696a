"""Biases as integers, so that ONNX Runtime has no reason to quantize anything by itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from seatrial.deploy.onnx_constants import Names, add_constant, constant_of

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")


def float_weights_between_rounds(graph: ir.Graph) -> list[str]:
    """Return the operators whose input and output are rounded and whose weight is not.

    ONNX Runtime's optimizer WeightBiasQuantization rounds those weights unasked.
    """
    return [
        str(node.name or node.op_type)
        for node in graph
        if node.op_type in _PRODUCTS
        and _is_rounded(node.inputs[0])
        and constant_of(node.inputs[1]) is not None
        and any(user.op_type == "QuantizeLinear" for user in _after_relu(node))
    ]


def round_biases(graph: ir.Graph, names: Names) -> None:
    """Store the bias of every operator with rounded input and weight as int32 on the grid scale_x * scale_w, in place.

    ONNX Runtime's optimizer does the same where a round follows, and only there: the last linear operator would
    run in float behind a dequantization of its weights. The optimizer quantizes float weights with it, too; done here,
    it can be switched off.
    """
    for node in list(graph):
        if node.op_type not in ("Conv", "Gemm") or len(node.inputs) < 3:
            continue
        bias = constant_of(node.inputs[2])
        if bias is None or not (_is_rounded(node.inputs[0]) and _is_rounded(node.inputs[1])):
            continue
        scales = [_scale(value) for value in node.inputs[:2]]
        if any(scale is None for scale in scales) or scales[0].size != 1:  # pyright: ignore[reportOptionalMemberAccess]
            continue
        scale = np.asarray(scales[0] * scales[1], np.float32).reshape(-1)  # pyright: ignore[reportOptionalOperand]
        codes = np.rint(bias.astype(np.float64) / scale)
        if np.abs(codes).max(initial=0) > np.iinfo(np.int32).max:
            continue
        name = str(node.inputs[2].name)  # pyright: ignore[reportOptionalMemberAccess]
        stored = add_constant(graph, names, f"{name}_codes", codes.astype(np.int32))
        grid = scale.reshape(()) if scale.size == 1 else scale
        step = add_constant(graph, names, f"{name}_scale", grid)
        zero = add_constant(graph, names, f"{name}_zero_point", np.zeros(grid.shape, np.int32))
        out = ir.Value(name=names.free(f"{name}_rounded"))
        along = [ir.AttrInt64("axis", 0)] if grid.ndim else []
        graph.insert_before(node, ir.Node("", "DequantizeLinear", [stored, step, zero], along, outputs=[out]))
        node.replace_input_with(2, out)


def _round_of(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that gave a value, behind operators that move values."""
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in _MOVES:
        moved = producer.inputs[0]
        producer = moved.producer() if moved is not None else None
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def _is_rounded(value: ir.Value | None) -> bool:
    return _round_of(value) is not None


def _scale(value: ir.Value | None) -> np.ndarray | None:
    found = _round_of(value)
    return constant_of(found.inputs[1]) if found is not None else None


def _after_relu(node: ir.Node) -> list[ir.Node]:
    users = [user for user, _ in node.outputs[0].uses()]
    for user in list(users):
        if user.op_type in ("Relu", "Clip", "Reshape", "Transpose"):
            users += [after for after, _ in user.outputs[0].uses()]
    return users
