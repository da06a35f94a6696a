"""Tensors that must keep one channel scale: what stands between operators with weights of their own."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.sites import attribute, op_name, shape_of

_HOMOGENEOUS = {"relu", "leaky_relu", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean", "contiguous", "clone"}
"""f(x / s) = f(x) / s for a positive scale of each channel, on pictures [batch, channels, height, width]."""


@dataclass(frozen=True)
class ChannelGroup:
    """Pictures that can be divided by one positive scale per channel without changing the network's function.

    `producers` (convolutions and batch norms) divide, `consumers` (the same kinds) multiply it back; between them
    stand only operators for which f(x / s) = f(x) / s, and additions of two members.
    """

    tensors: tuple[fx.Node, ...]
    producers: tuple[fx.Node, ...]
    consumers: tuple[fx.Node, ...]


def channel_groups(graph: Graph) -> list[ChannelGroup]:
    """Return every group of a graph, in order of execution; residual streams are one group."""
    union = _Union()
    closed: set[fx.Node] = set()
    ends: list[tuple[fx.Node, fx.Node]] = []
    for node in graph.nodes():
        kind, read = op_name(node), [value for value in node.all_input_nodes if value.op != "get_attr"]
        if node.op == "get_attr" or kind == "sym_size":
            continue
        if _rank(node) == 4 and _owns_parameters(graph, node) and len(read) == 1:
            union.find(node)
            ends.append((read[0], node))
        elif _keeps_channels(node, read):
            for value in read:
                union.join(value, node)
        else:
            closed.update((node, *read))
    shut = {union.find(node) for node in closed}
    members: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes():
        if node in union.parent and union.find(node) not in shut:
            members[union.find(node)].append(node)
    weighted = {node for _, node in ends}
    groups = []
    for tensors in members.values():
        producers = tuple(node for node in tensors if node in weighted)
        consumers = tuple(node for value, node in ends if value in tensors)
        if producers and consumers:
            groups.append(ChannelGroup(tuple(tensors), producers, consumers))
    return groups


def parameter(graph: Graph, node: fx.Node, index: int) -> Tensor | None:
    """Return the parameter that `node` reads as argument `index`, None where it reads none."""
    argument = node.args[index] if len(node.args) > index else None
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    return attribute(graph.module, str(argument.target)).detach()


def conv_groups(node: fx.Node) -> int:
    """Return the number of groups of a convolution, 1 for other operators."""
    return int(node.args[6]) if op_name(node) == "conv2d" and len(node.args) > 6 else 1  # pyright: ignore[reportArgumentType]


def reads_one_channel(graph: Graph, node: fx.Node) -> bool:
    """Tell whether every output channel comes from one input channel: depthwise convolutions and batch norms."""
    weight = parameter(graph, node, 1)
    return weight is not None and (weight.ndim == 1 or (weight.shape[1] == 1 and conv_groups(node) > 1))


class _Union:
    """Disjoint sets of nodes."""

    def __init__(self) -> None:
        self.parent: dict[fx.Node, fx.Node] = {}

    def find(self, node: fx.Node) -> fx.Node:
        self.parent.setdefault(node, node)
        while self.parent[node] is not node:
            node = self.parent[node]
        return node

    def join(self, one: fx.Node, other: fx.Node) -> None:
        self.parent[self.find(one)] = self.find(other)


def _rank(node: fx.Node) -> int:
    return len(shape_of(node))


def _owns_parameters(graph: Graph, node: fx.Node) -> bool:
    """Tell whether a convolution or batch norm has parameters of its own to take a scale."""
    if op_name(node) not in ("conv2d", "batch_norm") or parameter(graph, node, 1) is None:
        return False
    if op_name(node) == "batch_norm" and any(parameter(graph, node, index) is None for index in (2, 3, 4)):
        return False
    bias = node.args[2] if len(node.args) > 2 else None
    if bias is not None and parameter(graph, node, 2) is None:
        return False
    return all(len(value.users) == 1 for value in node.all_input_nodes if value.op == "get_attr")


def _keeps_channels(node: fx.Node, read: list[fx.Node]) -> bool:
    if _rank(node) != 4 or any(_rank(value) != 4 for value in read):
        return False
    kind = op_name(node)
    if kind == "mean":
        dims = node.args[1] if len(node.args) > 1 else None
        return isinstance(dims, list | tuple) and {dim % 4 for dim in dims if isinstance(dim, int)} <= {2, 3}
    if kind in ("pad", "constant_pad_nd"):
        return _pads_with_zero(node)
    if kind == "add":
        # A scaled addition or one that broadcasts is left alone.
        shapes = [tuple(value.meta["val"].shape[1:]) for value in read]
        return len(node.all_input_nodes) == len(read) == 2 and not node.kwargs and shapes[0] == shapes[1]
    return kind in _HOMOGENEOUS and len(read) == 1


def _pads_with_zero(node: fx.Node) -> bool:
    widths = node.args[1]
    spatial = isinstance(widths, list | tuple) and len(widths) <= 4
    rest = [*node.args[2:], *node.kwargs.values()]
    return spatial and all(value in (None, "constant", 0) for value in rest)
