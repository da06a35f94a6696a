"""Products with weights on grids of groups, stored as integers: the runtimes' own operator MatMulNBits."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from seatrial.core.further_rounds import grouped_codes
from seatrial.core.graph import Graph, copied, finished
from seatrial.core.sites import op_name
from seatrial.deploy.onnx_constants import Names, add_constant, constant_of, plain_path

GroupProducts = Literal["float32", "int8"]
"""What MatMulNBits multiplies: its input as it is, or rounded to 8 bits around zero with a scale for each group."""

_DOMAIN = "com.microsoft"
_ACCURACY_LEVELS = {"float32": 1, "int8": 4}
"""Of ONNX Runtime's kernels. On a core with AVX-512 (1,024 inputs, as many outputs, groups of 128, one row, and 128
rows) a product takes, of the time in float: 4 bits 1.2 and 1.2 at level 1, 0.56 and 0.56 at level 4; 8 bits 11 and 1.6
at level 1, which has no kernel of its own, 0.6 and 1.3 at level 4. OpenVINO reads the operator and not the level."""
_LEAST_GROUP = 16


def packs(bits: int, group: int) -> bool:
    """Tell whether MatMulNBits takes such groups: powers of two from 16 up, codes of at most 8 bits."""
    return bits <= 8 and group >= _LEAST_GROUP and group & (group - 1) == 0


def pack_groups(model: ir.Model, names: Names, products: GroupProducts) -> tuple[str, ...]:
    """Replace products with grouped weights by MatMulNBits, in place, and return the names of those weights.

    Codes of up to 4 bits take half a byte, others a byte; zero points likewise. What the operator does not take
    (`packs`), and weights that something else reads too, are left as they are.

    Source: the operator's documentation in ONNX Runtime (B, scales, zero_points, bias; low half of a byte first).
    """
    packed = []
    for node in list(model.graph):
        if node.op_type != "GroupedQdq" or constant_of(node.inputs[0]) is None:
            continue
        bits, group = node.attributes["bits"].as_int(), node.attributes["group"].as_int()
        readers = _products(node)
        if not packs(bits, group) or not readers:
            continue
        packed.append(weight_name(node))
        _Packing(model.graph, names, node, products).replace(readers)
    if packed:
        model.opset_imports[_DOMAIN] = 1
    return tuple(packed)


def weight_name(node: ir.Node) -> str:
    """Return the path of the parameter that a round reads."""
    source = node.inputs[0]
    assert source is not None
    return plain_path(str(source.name))


def rounded_inputs(graph: Graph) -> Graph:
    """Return a graph in which products that `pack_groups` packs round their input as `int8` products do."""
    new = copied(graph)
    nodes, done = new.module.graph, dict[tuple[fx.Node, int], fx.Node]()
    for node in list(nodes.nodes):
        weight = node.args[1] if op_name(node) == "linear" else None
        if not isinstance(weight, fx.Node) or op_name(weight) != "grouped_qdq":
            continue
        source, (bits, group) = node.args[0], weight.args[3:5]
        assert isinstance(source, fx.Node)
        assert isinstance(bits, int)
        assert isinstance(group, int)
        if not packs(bits, group):
            continue
        if (source, group) not in done:
            with nodes.inserting_before(node):
                rounded = nodes.call_function(torch.ops.seatrial.dynamic_qdq.default, (source, 8, True, group))
            rounded.meta = dict(node.meta, val=source.meta.get("val"))
            done[source, group] = rounded
        node.replace_input_with(source, done[source, group])
    return finished(new) if done else graph


def _products(node: ir.Node) -> list[ir.Node]:
    """Return the products that read a weight [out, in], none where anything else reads it as well."""
    found: list[ir.Node] = []
    for reader, index in node.outputs[0].uses():
        if reader.op_type == "Gemm" and index == 1 and _is_linear(reader):
            found.append(reader)
        elif reader.op_type == "Transpose" and list(reader.attributes["perm"].as_ints()) == [1, 0]:
            behind = list(reader.outputs[0].uses())
            if any(user.op_type != "MatMul" or place != 1 for user, place in behind):
                return []
            found += [user for user, _ in behind]
        else:
            return []
    return found


def _is_linear(gemm: ir.Node) -> bool:
    """Tell whether a Gemm is x W^T + b with a constant bias or none."""
    kept = {"transA": 0, "transB": 1, "alpha": 1.0, "beta": 1.0}
    plain = all(kept[name] == attribute.value for name, attribute in gemm.attributes.items())
    return plain and "transB" in gemm.attributes and all(constant_of(bias) is not None for bias in gemm.inputs[2:])


class _Packing:
    """One weight in one graph."""

    def __init__(self, graph: ir.Graph, names: Names, node: ir.Node, products: GroupProducts) -> None:
        self.graph, self.names, self.node, self.level = graph, names, node, _ACCURACY_LEVELS[products]
        self.bits = 4 if node.attributes["bits"].as_int() <= 4 else 8
        self.group = node.attributes["group"].as_int()

    def replace(self, readers: list[ir.Node]) -> None:
        weight, scale, zero = (constant_of(value) for value in self.node.inputs)
        assert weight is not None
        assert scale is not None
        assert zero is not None
        given, grid, origin = (torch.from_numpy(np.ascontiguousarray(value)) for value in (weight, scale, zero))
        bits = self.node.attributes["bits"].as_int()
        codes = grouped_codes(given, grid, origin, bits, self.group).numpy().astype(np.uint8)
        base = weight_name(self.node)
        held = [
            add_constant(self.graph, self.names, f"{base}_codes", self._packed(codes)),
            add_constant(self.graph, self.names, f"{base}_scale", scale.astype(np.float32)),
            add_constant(self.graph, self.names, f"{base}_zero_point", self._packed(zero.astype(np.uint8))),
        ]
        sizes = {"K": weight.shape[1], "N": weight.shape[0], "bits": self.bits, "block_size": self.group}
        for reader in readers:
            self._replace(reader, held, {**sizes, "accuracy_level": self.level})
        for reader, _ in list(self.node.outputs[0].uses()):
            self.graph.remove(reader, safe=True)
        self.graph.remove(self.node, safe=True)

    def _packed(self, codes: np.ndarray) -> np.ndarray:
        """Return codes as bytes; two codes of 4 bits in one, the first in its low half, the last row's end alone."""
        if self.bits == 8:
            return codes
        even = np.concatenate([codes, np.zeros((*codes.shape[:-1], codes.shape[-1] % 2), np.uint8)], -1)
        return even[..., 0::2] | (even[..., 1::2] << 4)

    def _replace(self, reader: ir.Node, held: list[ir.Value], attributes: dict[str, int]) -> None:
        (old,) = reader.outputs
        out = ir.Value(name=self.names.free(f"{old.name}_packed"), shape=old.shape, type=old.type)
        inputs = [reader.inputs[0], *held, *([None, reader.inputs[2]] if len(reader.inputs) > 2 else [])]
        kept = [ir.AttrInt64(name, value) for name, value in attributes.items()]
        product = ir.Node(_DOMAIN, "MatMulNBits", inputs, kept, outputs=[out])
        product.metadata_props.update(reader.metadata_props)
        self.graph.insert_before(reader, product)
        old.replace_all_uses_with(out, replace_graph_outputs=True)
        if reader.op_type == "MatMul":
            self.graph.remove(reader, safe=True)
