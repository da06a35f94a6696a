"""Fold batch normalization into the convolution or linear operator before it."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from seatrial.core.constants import parameter_at, set_constant
from seatrial.core.graph import Graph, copied, finished
from seatrial.core.sites import op_name


def fold_batch_norm(graph: Graph) -> Graph:
    """Return a graph whose batch norms stand in the weights before them; computed in float64, stored as they came.

    A batch norm is folded where it alone reads a convolution or linear operator whose weight nobody shares. Others
    stay as they are.

    Source: Jacob et al. 2018, section 3.2, eq. 14.
    """
    new = copied(graph)
    for i, node in enumerate(list(new.module.graph.nodes)):
        weighted = node.args[0] if op_name(node) == "batch_norm" else None
        if isinstance(weighted, fx.Node) and _foldable(weighted, node):
            _fold(new.module, weighted, node, f"folded{i}")
    new.module.graph.eliminate_dead_code()
    return finished(new)


def norm_affine(module: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """Return the gain and the offset of a batch norm with fixed statistics, float64, one a channel."""
    gain, offset, mean, variance = (parameter_at(module, norm, index) for index in range(1, 5))
    eps = norm.args[7]
    assert mean is not None
    assert variance is not None
    assert isinstance(eps, float)
    factor = (1.0 if gain is None else gain.double()) / torch.sqrt(variance.double() + eps)
    return factor, (0.0 if offset is None else offset.double()) - mean.double() * factor


def _foldable(weighted: fx.Node, norm: fx.Node) -> bool:
    kind, weight = op_name(weighted), weighted.args[1] if len(weighted.args) > 1 else None
    if kind not in ("conv1d", "conv2d", "conv3d", "linear") or len(weighted.users) != 1:
        return False
    if kind == "linear" and len(weighted.meta["val"].shape) != 2:
        return False  # the norm's channels are axis 1, those of the linear operator the last
    bias = weighted.args[2] if len(weighted.args) > 2 else None
    constants = [argument for argument in (weight, bias, *norm.args[1:5]) if argument is not None]
    fixed = all(isinstance(argument, fx.Node) and argument.op == "get_attr" for argument in constants)
    uses_statistics = norm.args[5] is False and norm.args[3] is not None and norm.args[4] is not None
    return fixed and uses_statistics and isinstance(weight, fx.Node) and len(weight.users) == 1


def _fold(module: fx.GraphModule, weighted: fx.Node, norm: fx.Node, name: str) -> None:
    weight, bias = parameter_at(module, weighted, 1), parameter_at(module, weighted, 2)
    assert weight is not None
    factor, offset = norm_affine(module, norm)
    moved = offset if bias is None else bias.double() * factor + offset
    folded = weight.double() * factor.reshape(-1, *[1] * (weight.ndim - 1))
    set_constant(module, weighted, 1, folded.to(weight.dtype), f"{name}_weight")
    set_constant(module, weighted, 2, moved.to(weight.dtype), f"{name}_bias")
    norm.replace_all_uses_with(weighted)
    module.graph.erase_node(norm)
