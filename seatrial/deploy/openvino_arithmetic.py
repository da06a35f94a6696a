"""How OpenVINO's CPU plugin computes between two rounds."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from seatrial.core.realise import tensor_inputs
from seatrial.core.sites import op_name
from seatrial.deploy.integers import Arithmetic, Codes, Grid, Rewriting, aten, by_channel


class OpenVinoArithmetic(Arithmetic):
    """int32 accumulators that are scaled to values, float biases, and rounds as multiply-adds.

    Constants that scale or shift a tensor before its round (normalization, a batch norm behind a ReLU) become ranges of
    that round, one for each channel. A convolution that only a residual sum reads is computed together with it: it is
    cut to the range of its grid and added with its fractions. Of two such convolutions the first is.

    Source: none; found by comparing codes, docs/decisions/0007-simulation-in-integers.md.
    """

    def product(self, edit: Rewriting, node: fx.Node, x: Codes, weight: Codes) -> fx.Node:
        sums = edit.call(node.target, x.node, weight.node, None, *node.args[3:], like=node)
        scale, bias = by_channel(_step(x) * weight.scale, node), edit.parameter(node, 2)
        value = edit.scaled(sums, scale)
        if bias is not None:
            value = edit.call(aten.add.Tensor, value, edit.constant(by_channel(bias, node), "bias"), like=node)
        edit.products[value] = Codes(sums, scale)
        return value

    def rounded(self, edit: Rewriting, node: fx.Node, grid: Grid) -> fx.Node:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        total = source.args[0] if op_name(source) == "relu" else source
        assert isinstance(total, fx.Node)
        joined = _joined(edit, total)
        ends = grid.ends
        if joined is None:
            value, low, high = _inner(edit, source, *ends)
            return _round(edit, node, value, (low, high), grid)
        own, stream = joined
        # The stream's codes are added as they are: all else is in its steps.
        steps = _step(stream)
        value = edit.call(aten.add.Tensor, _open(edit, own, stream), stream.node, like=total)
        if source is not total:
            value = edit.call(aten.relu.default, value, like=source)
        return _round(edit, node, value, (ends[0] / steps, ends[1] / steps), grid)


def _round(edit: Rewriting, node: fx.Node, value: fx.Node, ends: tuple[Tensor, Tensor], grid: Grid) -> fx.Node:
    """Return the codes of a value for a grid whose lowest and highest code stand at `ends`, maybe for each channel."""
    low, high = ends
    factor, offset = _multiply_add(grid, low, high)
    if factor.ndim == 0 and grid.zero == grid.low:
        return edit.to_codes(edit.scaled(value, 1 / (1 / factor)), grid, node)
    # Rounded as steps above the lowest code.
    from_zero = Grid(grid.scale, grid.zero - grid.low, 0, grid.high - grid.low)
    return edit.to_codes(edit.fused(value, factor, offset), from_zero, node, raised=True)


def _step(held: Codes) -> Tensor:
    """Return the scale of a rounded tensor; that of a signed one, which is stored unsigned, is found anew."""
    assert held.grid is not None
    low, high = held.grid.ends
    return (high - low) / _steps(held.grid) if held.grid.low < 0 else held.scale


def _multiply_add(grid: Grid, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factor and the summand that give steps above the lowest code for a range from `low` to `high`."""
    return _steps(grid) / (high - low), -low * _steps(grid) / (high - low)


def _steps(grid: Grid) -> Tensor:
    """Return the number of steps as a tensor: a number over a tensor would be its reciprocal, rounded, times that."""
    return torch.tensor(float(grid.high - grid.low))


def _inner(edit: Rewriting, value: fx.Node, low: Tensor, high: Tensor) -> tuple[fx.Node, Tensor, Tensor]:
    """Return what stands before constants that scale and shift a value, and the ends of its range there."""
    while value not in edit.products:
        kind, inner = op_name(value), value.args[0] if value.args else None
        other = edit.parameter(value, 1)
        if not isinstance(inner, fx.Node) or value.kwargs:
            break
        if kind == "batch_norm":
            gain, offset = _affine(edit, value)
            if bool((gain <= 0).any()):
                break
            low, high = low / gain - offset / gain, high / gain - offset / gain
        elif other is None or other.ndim == 0 or kind not in ("sub", "add", "mul", "div"):
            break
        elif kind == "sub":
            low, high = low + other, high + other
        elif kind == "add":
            low, high = low - other, high - other
        elif kind == "div" and bool((other > 0).all()):
            low, high = low * other, high * other
        elif kind == "mul" and bool((other > 0).all()):
            low, high = low / other, high / other
        else:
            break
        value = inner
    return value, low, high


def _affine(edit: Rewriting, norm: fx.Node) -> tuple[Tensor, Tensor]:
    gain, offset, mean, variance = (edit.parameter(norm, index) for index in range(1, 5))
    assert mean is not None
    assert variance is not None
    eps = norm.args[7]
    assert isinstance(eps, float)
    # torch's vectorized float32 root errs in the last bit.
    deviation = torch.sqrt((variance + eps).double()).float()
    steep = (torch.ones_like(mean) if gain is None else gain) / deviation
    moved = (0.0 if offset is None else offset) - mean * steep
    return steep.reshape(-1, 1, 1), moved.reshape(-1, 1, 1)


def _joined(edit: Rewriting, total: fx.Node) -> tuple[Codes, Codes] | None:
    """Return the convolution that a residual sum is computed with, and the stream that it is added to."""
    if op_name(total) != "add" or total.kwargs:
        return None
    read = tensor_inputs(total)
    held = [edit.codes.get(value) for value in read]
    if len(read) != 2 or not all(codes and codes.grid for codes in held):
        return None
    for index in (0, 1):
        own, stream = held[index], held[1 - index]
        if not own or not stream or own.source is None or len(read[index].users) != 1:
            continue
        product = edit.products.get(own.source)
        # The sum is written over the stream, which the convolution must not read itself.
        if product is not None and op_name(product.node) == "conv2d" and product.node.args[0] is not stream.node:
            return own, stream
    return None


def _open(edit: Rewriting, own: Codes, stream: Codes) -> fx.Node:
    """Return a convolution's value in steps of the stream, within the range of its own grid and not rounded."""
    assert own.grid is not None
    assert own.source is not None
    assert stream.grid is not None
    low, high = own.grid.ends
    factor, offset = _multiply_add(own.grid, low, high)
    ratio = _step(own) / _step(stream)
    cut = edit.call(aten.clamp.default, own.source, float(low), float(high), like=own.source)
    if stream.grid.low >= 0:
        return edit.scaled(cut, factor * ratio)
    # What rounding leaves of the shift to unsigned codes and back.
    return edit.fused(cut, factor * ratio, offset * ratio + float(own.grid.low - own.grid.zero) * ratio)
