"""How ONNX Runtime's CPU kernels compute between two rounds."""

from __future__ import annotations

from torch import Tensor, fx

from seatrial.core.realise import tensor_inputs
from seatrial.core.sites import op_name, shape_of
from seatrial.deploy.integers import UNIT, Arithmetic, Codes, Grid, Rewriting, aten, by_channel, limits


class OnnxRuntimeArithmetic(Arithmetic):
    """int32 accumulators with integer biases, one float32 multiplier from there to the next codes.

    Sums and products of two rounded tensors are computed on codes with the quotients of scales; everything else is
    float32 between a dequantization and a division by the scale.

    Source: Jacob et al. 2018, section 2.2 and 2.4 (eq. 5 to 7), with a float32 multiplier for the fixed-point one.
    """

    def product(self, edit: Rewriting, node: fx.Node, x: Codes, weight: Codes) -> fx.Node:
        scale, bias = x.scale * weight.scale, edit.parameter(node, 2)
        sums = edit.call(node.target, x.node, weight.node, None, *node.args[3:], like=node)
        # Linear operators of more dimensions run as a product and a float sum, unrounded convolutions in float.
        kernel = _is_rounded(node) if op_name(node) == "conv2d" else len(node.meta["val"].shape) == 2
        if bias is not None and kernel:
            codes = (bias / (scale * UNIT)).round() * UNIT
            added = edit.constant(by_channel(codes, node), "bias_codes")
            sums, bias = edit.call(aten.add.Tensor, sums, added, like=node), None
        value = edit.scaled(sums, by_channel(scale, node))
        if bias is not None:
            value = edit.call(aten.add.Tensor, value, edit.constant(by_channel(bias, node), "bias"), like=node)
        elif kernel:
            edit.products[value] = Codes(sums, by_channel(scale, node))
        return value

    def rounded(self, edit: Rewriting, node: fx.Node, grid: Grid) -> fx.Node:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        inner = _without_limits(source, grid)
        product = edit.products.get(inner)
        if product is not None:
            sums = product.node
            if inner is not source and grid.zero == grid.low:
                # The lowest code cuts off what a ReLU does; only the gradient just below zero needs it.
                sums = edit.call(aten.relu.default, sums, like=node)
            return edit.to_codes(edit.scaled(sums, product.scale / grid.scale), grid, node)
        read = [edit.codes.get(value) for value in tensor_inputs(inner)]
        if len(read) == 1 and read[0] and read[0].grid and (places := _averaged(inner)):
            return _mean(edit, node, inner, read[0], grid, places)
        if len(read) == 2 and read[0] and read[1] and read[0].grid and read[1].grid and not inner.kwargs:
            if op_name(inner) == "add":
                return _sum(edit, node, read[0], read[1], grid)
            if op_name(inner) == "mul":
                return _gated(edit, node, read[0], read[1], grid)
        ratio = edit.call(aten.div.Tensor, source, edit.constant(grid.scale, "scale"), like=node)
        return edit.to_codes(ratio, grid, node)


def _averaged(node: fx.Node) -> int:
    """Return over how many places a mean over whole pictures goes, 0 for any other operator."""
    shape, axes = shape_of(tensor_inputs(node)[0]), node.args[1] if len(node.args) > 1 else None
    if op_name(node) != "mean" or len(shape) != 4 or not isinstance(axes, list | tuple):
        return 0
    if sorted(int(str(axis)) % 4 for axis in axes) != [2, 3] or not all(isinstance(dim, int) for dim in shape[2:]):
        return 0
    return shape[2] * shape[3]


def _mean(edit: Rewriting, node: fx.Node, inner: fx.Node, read: Codes, grid: Grid, places: int) -> fx.Node:
    """sum(a - zero_a) * (s_a / (s * places)), the sum exact."""
    total = edit.call(aten.sum.dim_IntList, read.node, *inner.args[1:], like=inner)
    return edit.to_codes(edit.scaled(total, read.scale / (grid.scale * float(places))), grid, node)


def _without_limits(value: fx.Node, grid: Grid) -> fx.Node:
    """Return what stands before activations that cut off no more than the grid does: the runtime drops them."""
    low, high = (float(end) for end in grid.ends)
    while (cut := limits(value)) is not None and cut[0] <= low and high <= cut[1] + 1e-6 * abs(cut[1]):
        inner = value.args[0]
        if not isinstance(inner, fx.Node) or len(value.users) != 1:
            break
        value = inner
    return value


def _is_rounded(node: fx.Node) -> bool:
    """Tell whether a round stands behind an operator, directly or behind an activation that clips."""
    users = list(node.users)
    while len(users) == 1 and limits(users[0]) is not None:
        users = list(users[0].users)
    return bool(users) and all(op_name(user) in ("qdq", "sym_size") for user in users)


def _raised(edit: Rewriting, held: Codes) -> fx.Node:
    """Return the codes with their zero point."""
    assert held.grid is not None
    return edit.call(aten.add.Tensor, held.node, held.grid.zero, like=held.node) if held.grid.zero else held.node


def _sum(edit: Rewriting, node: fx.Node, one: Codes, other: Codes, grid: Grid) -> fx.Node:
    """a * (s_a / s) + (b * (s_b / s) + fixed), by fused multiply-adds; `fixed` is what does not depend on the codes."""
    assert one.grid is not None
    assert other.grid is not None
    ratios = one.scale / grid.scale, other.scale / grid.scale
    zeros = (ratios[0].double() * one.grid.zero + (ratios[1] * other.grid.zero).double()).float()
    last = edit.fused(_raised(edit, other), ratios[1], float(grid.zero) - zeros)
    return edit.to_codes(edit.fused(_raised(edit, one), ratios[0], last), grid, node, raised=True)


def _gated(edit: Rewriting, node: fx.Node, one: Codes, other: Codes, grid: Grid) -> fx.Node:
    """(a - zero_a) * (b - zero_b) * (s_a * s_b / s)."""
    product = edit.call(aten.mul.Tensor, one.node, other.node, like=node)
    factor: Tensor = one.scale * other.scale / grid.scale
    return edit.to_codes(edit.scaled(product, factor), grid, node)
