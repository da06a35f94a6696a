"""Write a batch norm behind a ReLU as limits of the convolution before both, for ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from seatrial.core.constants import constant, parameter_at, set_constant
from seatrial.core.graph import Graph, copied, finished
from seatrial.core.sites import op_name
from seatrial.numerics.batch_norm import norm_affine

aten = torch.ops.aten


def clamped_norms(graph: Graph) -> Graph:
    """Return a graph whose rounded `batch_norm(relu(convolution))` is a convolution within limits for each channel.

    With a gain g and an offset h, g * relu(c) + h is max(g * c + h, h), or the minimum where g < 0, and g * c + h is a
    convolution with other weights and biases; its weights keep their codes. A round before such a limit loses nothing,
    as the limit only moves codes to the code of h. So ONNX Runtime, which computes convolutions in integers between two
    rounds and ReLUs alone, need not compute this one in float (docs/decisions/0007-simulation-in-integers.md).
    """
    new = copied(graph)
    found = [norm for norm in new.nodes() if op_name(norm) == "batch_norm"]
    matched = [match for norm in found if (match := _match(new, norm)) is not None]
    if not matched:
        return graph
    for match in matched:
        _rewrite(new.module, match)
    new.module.graph.eliminate_dead_code()
    return finished(new)


@dataclass(frozen=True, eq=False)
class _Match:
    convolution: fx.Node
    norm: fx.Node
    round: fx.Node
    codes: Tensor
    scale: Tensor
    gain: Tensor
    offset: Tensor
    bias: Tensor


def _match(graph: Graph, norm: fx.Node) -> _Match | None:
    relu, rounds = norm.args[0], list(norm.users)
    convolution = (
        relu.args[0] if isinstance(relu, fx.Node) and op_name(relu) == "relu" and len(relu.users) == 1 else None
    )
    if not isinstance(convolution, fx.Node) or op_name(convolution) != "conv2d" or len(convolution.users) != 1:
        return None
    x, weight = convolution.args[:2]
    if not isinstance(weight, fx.Node) or op_name(weight) != "qdq" or len(weight.users) != 1:
        return None
    if len(rounds) != 1 or op_name(rounds[0]) != "qdq" or rounds[0].args[5] != -1 or not isinstance(x, fx.Node):
        return None
    values, scale, zero = (parameter_at(graph.module, weight, index) for index in range(3))
    low, high, axis = weight.args[3:6]
    fixed = all(parameter_at(graph.module, norm, index) is not None for index in (3, 4))
    if values is None or scale is None or zero is None or not fixed:
        return None
    if bool(zero.any()) or axis != 0 or not isinstance(low, int) or not isinstance(high, int):
        return None
    steep, moved = norm_affine(graph.module, norm)
    if bool((steep == 0).any()) or (low != -high and bool((steep < 0).any())):
        return None
    codes = (values.float() / scale.float().reshape(-1, 1, 1, 1)).round().clamp(low, high)
    bias = parameter_at(graph.module, convolution, 2)
    start = torch.zeros_like(moved) if bias is None else bias.double()
    return _Match(convolution, norm, rounds[0], codes, scale, steep, moved, start)


def _rewrite(module: fx.GraphModule, match: _Match) -> None:
    convolution, relu, norm = match.convolution, match.norm.args[0], match.norm
    weight, sign = convolution.args[1], match.gain.sign().float()
    assert isinstance(weight, fx.Node)
    assert isinstance(relu, fx.Node)
    scale = (match.scale.double() * match.gain.abs()).float()
    set_constant(module, weight, 0, match.codes * (sign * scale).reshape(-1, 1, 1, 1), "clamped_weight")
    set_constant(module, weight, 1, scale, "clamped_scale")
    set_constant(module, convolution, 2, (match.gain * match.bias + match.offset).float(), "clamped_bias")
    grid = match.round.args[1:]
    with module.graph.inserting_before(match.round):
        value = module.graph.call_function(torch.ops.seatrial.qdq.default, (convolution, *grid))
        value.meta = dict(convolution.meta)
        for limit, chosen in ((aten.maximum.default, sign > 0), (aten.minimum.default, sign < 0)):
            if bool(chosen.any()):
                value = _limited(module, value, limit, match.offset, chosen, match.round)
    match.round.replace_input_with(norm, value)


def _limited(
    module: fx.GraphModule, value: fx.Node, limit: object, offset: Tensor, chosen: Tensor, before: fx.Node
) -> fx.Node:
    """Add a limit that holds for the chosen channels; the others get one that no float32 reaches."""
    none = -torch.finfo(torch.float32).max if limit is aten.maximum.default else torch.finfo(torch.float32).max
    ends = torch.where(chosen, offset.float(), torch.full_like(offset.float(), none)).reshape(-1, 1, 1)
    held = constant(module, "clamped_limit", ends, before)
    added = module.graph.call_function(limit, (value, held))  # pyright: ignore[reportArgumentType]
    added.meta = dict(value.meta)
    return added
