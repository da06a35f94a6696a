"""Equalization: scales between two operators so that the channels of a tensor use its grid equally."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.predictor import Inputs
from seatrial.core.recipe import Migrate
from seatrial.core.sites import attribute, op_name, operators, site_of
from seatrial.numerics.observe import watch

_BETWEEN = {"relu", "max_pool2d"}
_LIMIT = 64.0


def equalize_depthwise(graph: Graph, calibration: Sequence[Inputs]) -> list[Migrate]:
    """Return one migration (scale only) for each tensor that a depthwise convolution alone reads.

    Channel c of the tensor is divided by s_c = max|X_c| / max|X|, so that every channel fills the one grid of the
    tensor; the depthwise weight, which has a scale for each channel anyway, takes s_c up without loss. The producer is
    a convolution or batch norm, behind it only ReLU and max pooling.

    Source: the closed form of Nagel et al. 2019, section 4.1, for a consumer that is depthwise. Departures: ranges of
    activations instead of weights; s_c stays above 1/64, and channels that are always zero keep 1.
    """
    names = {node: name for name, node in operators(graph).items()}
    pairs, peaks = [], dict[fx.Node, Tensor]()
    for node in names:
        consumer = _only_consumer(node, {"conv2d", "batch_norm"})
        if consumer is None or op_name(consumer) != "conv2d" or consumer.args[0] in peaks:
            continue
        weight = _weight(graph, consumer)
        if weight is not None and weight.shape[1] == 1 and _groups(consumer) == weight.shape[0] > 1:
            pairs.append((node, consumer))
            peaks[consumer.args[0]] = torch.zeros(weight.shape[0])  # pyright: ignore[reportArgumentType]

    def see(node: fx.Node, value: Tensor) -> None:
        peaks[node] = torch.maximum(peaks[node], value.abs().amax((0, 2, 3)))

    watch(graph, calibration, {node: partial(see, node) for node in peaks})
    edits = []
    for node, consumer in pairs:
        peak = peaks[consumer.args[0]]
        scale = torch.where(peak > 0, (peak / peak.max().clamp(min=1e-30)).clamp(min=1 / _LIMIT), torch.ones(()))
        producer, reader = site_of(names[node], "output"), site_of(names[consumer], "output")
        edits.append(Migrate(producer, (reader,), torch.zeros_like(scale), scale))
    return edits


def equalize(graph: Graph) -> list[Migrate]:
    """Return one migration (scale only) for each pair of weighted operators with only ReLU or max pooling between.

    With r1, r2 the largest absolute weights of a channel in the first and the second operator, X is divided by
    s = sqrt(r1 / r2), after which both ranges are sqrt(r1 * r2).

    Source: Nagel et al. 2019, section 4.1, eq. 11. Departures: each pair once, in order, on the original weights of
    its first operator; dead channels (r1 or r2 zero) keep s = 1; s stays within [1/64, 64].
    """
    names = {node: name for name, node in operators(graph).items()}
    out_scale: dict[fx.Node, Tensor] = {}
    edits = []
    for node in names:
        consumer = _only_consumer(node, {"conv2d", "linear"})
        if consumer is None:
            continue
        first, second = _weight(graph, node), _weight(graph, consumer)
        if first is None or second is None or len(first) != _channels_in(consumer, second):
            continue
        # What an earlier pair did to this operator's input channels is already in its weights.
        if node in out_scale:
            first = first * _input_scale(node, out_scale[node], first)
        r1 = first.abs().flatten(1).amax(1)
        r2 = _range_by_input(consumer, second)
        scale = torch.where((r1 > 0) & (r2 > 0), torch.sqrt(r1 / r2.clamp(min=1e-30)), torch.ones_like(r1))
        scale = scale.clamp(1 / _LIMIT, _LIMIT)
        out_scale[consumer] = scale
        producer, reader = site_of(names[node], "output"), site_of(names[consumer], "output")
        edits.append(Migrate(producer, (reader,), torch.zeros_like(scale), scale))
    return edits


def _only_consumer(node: fx.Node, producers: set[str]) -> fx.Node | None:
    if op_name(node) not in producers:
        return None
    while len(node.users) == 1:
        node = next(iter(node.users))
        if op_name(node) in ("conv2d", "linear"):
            return node
        if op_name(node) not in _BETWEEN:
            return None
    return None


def _weight(graph: Graph, node: fx.Node) -> Tensor | None:
    argument = node.args[1]
    shared = isinstance(argument, fx.Node) and len(argument.users) > 1
    if not isinstance(argument, fx.Node) or argument.op != "get_attr" or shared:
        return None
    return attribute(graph.module, str(argument.target)).detach()


def _groups(node: fx.Node) -> int:
    return int(node.args[6]) if op_name(node) == "conv2d" and len(node.args) > 6 else 1  # pyright: ignore[reportArgumentType]


def _channels_in(node: fx.Node, weight: Tensor) -> int:
    return weight.shape[1] * _groups(node)


def _range_by_input(node: fx.Node, weight: Tensor) -> Tensor:
    """Return the largest absolute weight that reads each input channel."""
    groups = _groups(node)
    grouped = weight.abs().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return grouped.amax((1, 3)).flatten()


def _input_scale(node: fx.Node, scale: Tensor, weight: Tensor) -> Tensor:
    groups = _groups(node)
    rows = scale.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1).reshape(weight.shape[:2])
    return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))
