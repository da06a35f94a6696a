"""From seatrial's own operators to standard ONNX: rounds become QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from seatrial.deploy.onnx_constants import Names, add_constant, constant_of, plain_path
from seatrial.deploy.onnx_further_rounds import SIMULATED, lower_further
from seatrial.errors import NotApplicable

DOMAIN = "seatrial"
_STORAGE = {(False, 8): np.uint8, (True, 8): np.int8, (False, 16): np.uint16, (True, 16): np.int16}
_FLOATS = {"bf16": (ml_dtypes.bfloat16, ir.DataType.BFLOAT16), "fp16": (np.float16, ir.DataType.FLOAT16)}


def lower(model: ir.Model, names: Names, native_floats: frozenset[str] = frozenset()) -> None:
    """Replace every operator of our domain in place by standard ones, rounded weights by their integers.

    Rounds to a float type in `native_floats` are dropped: the runtime computes in that type by itself.
    """
    for node in list(model.graph):
        if node.domain != DOMAIN:
            continue
        if node.op_type == "NarrowFloat" and node.attributes["kind"].as_string() in native_floats:
            source = node.inputs[0]
            assert source is not None
            node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
            continue
        _Lowering(model.graph, names, node).run()
    model.opset_imports.pop(DOMAIN, None)
    model.graph.opset_imports.pop(DOMAIN, None)


def storage_type(low: int, high: int) -> type[np.integer]:
    """Return the integer type that holds codes from `low` to `high`: 8 bits at least, 16 where needed."""
    signed = low < 0
    for bits in (8, 16):
        least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        if least <= low and high <= most:
            return _STORAGE[signed, bits]
    raise NotApplicable(f"codes from {low} to {high} do not fit in 16 bits, which ONNX's QuantizeLinear ends at")


def to_codes(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, low: int, high: int, axis: int) -> np.ndarray:
    """Return the codes of `x` on an affine grid as float32, with the arithmetic of `seatrial.core.qdq.qdq`."""
    if axis >= 0:
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    ratio = np.rint(x.astype(np.float32) / scale.astype(np.float32))
    return np.clip(ratio + zero.astype(np.float32), low, high)


class _Lowering:
    """One operator of ours in one graph."""

    def __init__(self, graph: ir.Graph, names: Names, node: ir.Node) -> None:
        source = node.inputs[0]
        assert source is not None
        self.graph, self.names, self.node, self.source = graph, names, node, source
        (self.output,) = node.outputs
        # A weight's round is named like the weight, a value's like the value.
        self.base = plain_path(str(source.name))

    def run(self) -> None:
        if self.node.op_type in SIMULATED:
            replacement = lower_further(self.graph, self.names, self.node)
        else:
            replacement = self._qdq() if self.node.op_type == "Qdq" else self._narrow_float()
        replacement.shape = self.output.shape
        self.output.replace_all_uses_with(replacement, replace_graph_outputs=True)
        self.graph.remove(self.node, safe=True)

    def _constant(self, suffix: str, array: np.ndarray) -> ir.Value:
        return add_constant(self.graph, self.names, f"{self.base}_{suffix}", array)

    def _add(self, op: str, inputs: list[ir.Value], suffix: str, **attributes: int) -> ir.Value:
        out = ir.Value(name=self.names.free(f"{self.base}_{suffix}"), shape=self.output.shape)
        kept = [ir.AttrInt64(name, value) for name, value in attributes.items()]
        self.graph.insert_before(self.node, ir.Node("", op, inputs, kept, outputs=[out]))
        return out

    def _qdq(self) -> ir.Value:
        low, high, axis = (self.node.attributes[name].as_int() for name in ("low", "high", "axis"))
        scale, zero = constant_of(self.node.inputs[1]), constant_of(self.node.inputs[2])
        assert scale is not None, "the grids of a captured graph are constants"
        assert zero is not None, "the grids of a captured graph are constants"
        if axis < 0 or scale.size == 1:
            axis, scale, zero = -1, scale.reshape(()), zero.reshape(())
        kind = storage_type(low, high)
        ends = np.iinfo(kind)
        if zero.min() < ends.min or zero.max() > ends.max:
            raise NotApplicable(f"a zero point from {zero.min()} to {zero.max()} does not fit in {kind.__name__}")
        along = {"axis": axis} if axis >= 0 else {}
        grid = [self._constant("scale", scale.astype(np.float32)), self._constant("zero_point", zero.astype(kind))]
        weights = constant_of(self.source)
        if weights is not None:
            codes = self._constant("codes", to_codes(weights, scale, zero, low, high, axis).astype(kind))
        else:
            source = self.source
            if (low, high) != (ends.min, ends.max):
                source = self._clipped(scale, zero, (low, high), axis)
            codes = self._add("QuantizeLinear", [source, *grid], "codes", **along)
        return self._add("DequantizeLinear", [codes, *grid], "rounded", **along)

    def _clipped(self, scale: np.ndarray, zero: np.ndarray, codes: tuple[int, int], axis: int) -> ir.Value:
        """Keep the value inside the narrow grid's range, so that its code never leaves `codes`."""
        low, high = (((code - zero) * scale.astype(np.float64)).astype(np.float32) for code in codes)
        if axis < 0:
            return self._add("Clip", [self.source, self._constant("low", low), self._constant("high", high)], "clipped")
        assert self.source.shape is not None, "a round per channel stands on a tensor of known rank"
        shape = [-1 if i == axis else 1 for i in range(len(self.source.shape))]
        raised = self._add("Max", [self.source, self._constant("low", low.reshape(shape))], "raised")
        return self._add("Min", [raised, self._constant("high", high.reshape(shape))], "clipped")

    def _narrow_float(self) -> ir.Value:
        array_type, onnx_type = _FLOATS[self.node.attributes["kind"].as_string()]
        weights = constant_of(self.source)
        if weights is not None:
            narrow = self._constant("narrow", weights.astype(array_type))
        else:
            narrow = self._add("Cast", [self.source], "narrow", to=int(onnx_type))
        return self._add("Cast", [narrow], "rounded", to=int(ir.DataType.FLOAT))
