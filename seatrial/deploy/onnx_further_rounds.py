"""Rounds that no integer kernel reads, as standard float operators of ONNX: the file simulates them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from seatrial.core.further_rounds import round_grouped, round_logarithmic, round_twin
from seatrial.deploy.onnx_constants import Names, add_constant, constant_of, plain_path
from seatrial.errors import NotApplicable

SIMULATED = frozenset({"DynamicQdq", "GroupedQdq", "LogarithmicQdq", "TwinQdq"})
"""Operators of our domain that this module lowers."""


def lower_further(graph: ir.Graph, names: Names, node: ir.Node) -> ir.Value:
    """Build what `node`, one of `SIMULATED`, computes in front of it and return the value; weights are folded."""
    builder = _Builder(graph, names, node)
    source = node.inputs[0]
    assert source is not None
    weights = constant_of(source)
    if weights is not None and node.op_type != "DynamicQdq":
        return builder.constant("rounded", _folded(node, weights))
    match node.op_type:
        case "DynamicQdq":
            return builder.dynamic(source)
        case "LogarithmicQdq":
            return builder.logarithmic(source)
        case "TwinQdq":
            return builder.twin(source)
    raise NotApplicable("a grouped round of a value that is no weight")


def _folded(node: ir.Node, weights: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(np.ascontiguousarray(weights))
    grid = [torch.from_numpy(np.ascontiguousarray(constant_of(value))) for value in node.inputs[1:]]  # pyright: ignore[reportArgumentType, reportCallIssue]
    bits = node.attributes["bits"].as_int()
    match node.op_type:
        case "GroupedQdq":
            return round_grouped(x, grid[0], grid[1], bits, node.attributes["group"].as_int()).contiguous().numpy()
        case "LogarithmicQdq":
            return round_logarithmic(x, grid[0], bits, node.attributes["steps"].as_int()).numpy()
    return round_twin(x, grid[0], grid[1], bits, bool(node.attributes["by_sign"].as_int())).numpy()


class _Builder:
    """Adds float operators in front of one node."""

    def __init__(self, graph: ir.Graph, names: Names, node: ir.Node) -> None:
        source = node.inputs[0]
        assert source is not None
        self.graph, self.names, self.node, self.base = graph, names, node, plain_path(str(source.name))

    def constant(self, suffix: str, array: np.ndarray | float) -> ir.Value:
        held = array if isinstance(array, np.ndarray) else np.asarray(array, np.float32)
        return add_constant(self.graph, self.names, f"{self.base}_{suffix}", held)

    def call(self, operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        out = ir.Value(name=self.names.free(f"{self.base}_{operator.lower()}"))
        kept = [ir.AttrInt64(name, value) for name, value in attributes.items()]
        self.graph.insert_before(self.node, ir.Node("", operator, list(inputs), kept, outputs=[out]))
        return out

    def clipped(self, x: ir.Value, low: float, high: float) -> ir.Value:
        return self.call("Clip", x, self.constant("low", float(low)), self.constant("high", float(high)))

    def dynamic(self, x: ir.Value) -> ir.Value:
        bits, group = self.node.attributes["bits"].as_int(), self.node.attributes["group"].as_int()
        if not group:
            return self._rounded_rows(x, bits)
        channels = x.shape[-1] if x.shape is not None else None
        if not isinstance(channels, int):
            raise NotApplicable("a dynamic round in groups of a tensor whose channels are not known")
        filled = x
        if short := -channels % group:
            ends = np.zeros(2 * len(x.shape), np.int64)  # pyright: ignore[reportArgumentType]
            ends[-1] = short
            filled = self.call("Pad", x, self.constant("filling", ends))
        rank = len(x.shape)  # pyright: ignore[reportArgumentType]
        apart = np.array([0] * (rank - 1) + [-1, group], np.int64)
        rows = self._rounded_rows(self.call("Reshape", filled, self.constant("groups", apart)), bits)
        together = self.call("Reshape", rows, self.constant("row", np.array([0] * (rank - 1) + [-1], np.int64)))
        if not short:
            return together
        first, last, axis = (self.constant(n, np.array([v], np.int64)) for n, v in
                             (("first", 0), ("last", channels), ("axis", rank - 1)))  # fmt: skip
        return self.call("Slice", together, first, last, axis)

    def _rounded_rows(self, x: ir.Value, bits: int) -> ir.Value:
        axis, zero = self.constant("last_axis", np.array([-1], np.int64)), self.constant("zero", 0.0)
        low = self.call("Min", self.call("ReduceMin", x, axis, keepdims=1), zero)
        high = self.call("Max", self.call("ReduceMax", x, axis, keepdims=1), zero)
        least = self.constant("least", float(torch.finfo(torch.float32).tiny))
        if self.node.attributes["symmetric"].as_int():
            top = float(2 ** (bits - 1) - 1)
            widest = self.call("Max", self.call("Neg", low), high)
            scale = self.call("Max", self.call("Div", widest, self.constant("top", top)), least)
            codes = self.clipped(self.call("Round", self.call("Div", x, scale)), -top, top)
            return self.call("Mul", codes, scale)
        top = float(2**bits - 1)
        scale = self.call("Max", self.call("Div", self.call("Sub", high, low), self.constant("top", top)), least)
        origin = self.call("Round", self.call("Div", self.call("Neg", low), scale))
        codes = self.clipped(self.call("Add", self.call("Round", self.call("Div", x, scale)), origin), 0.0, top)
        return self.call("Mul", self.call("Sub", codes, origin), scale)

    def logarithmic(self, x: ir.Value) -> ir.Value:
        bits, steps = self.node.attributes["bits"].as_int(), self.node.attributes["steps"].as_int()
        scale = self.node.inputs[1]
        assert scale is not None
        octaves = self.call("Log", self.call("Div", x, scale))
        codes = self.call("Round", self.call("Mul", octaves, self.constant("steps", -steps / np.log(2.0).item())))
        codes = self.call("Max", codes, self.constant("zero", 0.0))
        power = self.call(
            "Pow", self.constant("two", 2.0), self.call("Mul", codes, self.constant("step", -1.0 / steps))
        )
        held = self.call("Less", codes, self.constant("end", float(2**bits)))
        return self.call("Where", held, self.call("Mul", power, scale), self.constant("zero", 0.0))

    def twin(self, x: ir.Value) -> ir.Value:
        bits, by_sign = self.node.attributes["bits"].as_int(), self.node.attributes["by_sign"].as_int()
        fine, coarse = self.node.inputs[1:]
        assert fine is not None
        assert coarse is not None
        half = float(2 ** (bits - 1))
        steps = [self.call("Round", self.call("Div", x, step)) for step in (fine, coarse)]
        on_coarse = self.call("Mul", self.clipped(steps[1], 0.0, half - 1), coarse)
        ends = (-half, 0.0) if by_sign else (0.0, half - 1)
        on_fine = self.call("Mul", self.clipped(steps[0], *ends), fine)
        border = self.constant("zero", 0.0) if by_sign else self.call("Mul", fine, self.constant("half", half - 1))
        return self.call("Where", self.call("Less", x, border), on_fine, on_coarse)
