"""Equalization: scales between two operators so that the channels of a tensor use its grid equally."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.precision import Precision
from seatrial.core.predictor import Inputs
from seatrial.core.realise import source
from seatrial.core.recipe import Migrate, Replace
from seatrial.core.sites import Site, op_name, operators, site_of
from seatrial.numerics.observe import watch
from seatrial.quant.channel_groups import ChannelGroup, channel_groups, conv_groups, parameter, reads_one_channel

_BETWEEN = {"relu", "max_pool2d"}
_LIMIT = 64.0
_TRADE = 0.8
"""How much of the difficulty goes from activations into the weights that read all channels."""


def equalize_depthwise(
    graph: Graph, calibration: Sequence[Inputs], precision: Mapping[Site, Precision]
) -> list[Replace]:
    """Return new parameters of the operators around each rounded tensor that a depthwise convolution writes or reads.

    All tensors of a group (a residual stream is one) are divided by s_c, channel by channel, and what reads them
    multiplies it back, so the network's function stays. For one tensor with channel peaks P_c, where only depthwise
    convolutions and batch norms read it, s_c = P_c / max P: every channel fills the grid, and weights with a grid for
    each channel lose nothing. A group takes the geometric mean over its rounded tensors. Where a convolution with
    largest absolute weight R_c reads all channels, s_c = P_c^0.8 / R_c^0.2, as its weights lose what the tensor gains.

    Source: Nagel et al. 2019, section 4.1, for depthwise convolutions; the trade of Xiao et al. 2023 (SmoothQuant),
    eq. 4, with alpha 0.8. Departures: P_c is the geometric mean of the largest value over all samples and the mean of
    each sample's largest, since a single outlier would rule; s_c stays within 1/64 of the largest, and channels that
    are always zero keep 1.
    """
    names = {node: name for name, node in operators(graph).items()}
    rounded = _rounded(graph, precision)
    chosen = [group for group in channel_groups(graph) if _wanted(graph, group, rounded, names, precision)]
    peaks = {node: _Peaks() for group in chosen for node in group.tensors if node in rounded}
    if peaks:
        watch(graph, calibration, {node: seen.see for node, seen in peaks.items()})
    new = _Parameters(graph)
    for group in chosen:
        scale = _scale(graph, group, [peaks[node].value for node in group.tensors if node in peaks])
        for node in group.producers:
            new.divide_output(node, scale)
        for node in group.consumers:
            new.multiply_input(node, scale)
    return new.edits(names)


class _Peaks:
    """Largest absolute value of each channel: over all samples, and on average over samples."""

    def __init__(self) -> None:
        self.largest, self.total, self.count = torch.zeros(()), torch.zeros(()), 0

    def see(self, value: Tensor) -> None:
        peaks = torch.maximum(value.amax((2, 3)), -value.amin((2, 3)))
        self.largest = torch.maximum(self.largest, peaks.amax(0))
        self.total = self.total + peaks.double().sum(0)
        self.count += len(peaks)

    @property
    def value(self) -> Tensor:
        return (self.largest.double() * self.total / self.count).sqrt()


def _rounded(graph: Graph, precision: Mapping[Site, Precision]) -> set[fx.Node]:
    named = operators(graph)
    integer = [site for site, wanted in precision.items() if wanted.float_type is None and site.port != "weight"]
    return {source(named[site.operator], site.port) for site in integer if site.operator in named}


def _wanted(
    graph: Graph,
    group: ChannelGroup,
    rounded: Collection[fx.Node],
    names: Mapping[fx.Node, str],
    precision: Mapping[Site, Precision],
) -> bool:
    """Tell whether a group has a rounded tensor and a depthwise convolution, and no weights on one grid for all."""
    ends = [node for node in (*group.producers, *group.consumers) if op_name(node) == "conv2d"]
    asked = [precision.get(site_of(names[node], "weight")) for node in ends]
    if any(wanted is not None and wanted.axis != 0 for wanted in asked):
        return False
    return any(node in rounded for node in group.tensors) and any(reads_one_channel(graph, node) for node in ends)


def _scale(graph: Graph, group: ChannelGroup, peaks: Sequence[Tensor]) -> Tensor:
    """Return the float64 scale of each channel of a group; the largest is 1."""
    alive = torch.stack([peak > 0 for peak in peaks])
    relative = torch.stack([(peak / peak.max().clamp(min=1e-30)).clamp(min=1 / _LIMIT) for peak in peaks])
    scale = ((relative.log() * alive).sum(0) / alive.sum(0).clamp(min=1)).exp()
    weights = [_range_by_input(graph, node) for node in group.consumers if not reads_one_channel(graph, node)]
    if weights:
        widest = torch.stack(weights).amax(0).double()
        widest = (widest / widest.max().clamp(min=1e-30)).clamp(min=1 / _LIMIT)
        scale = scale**_TRADE / widest ** (1 - _TRADE)
    scale = (scale / scale.max()).clamp(min=1 / _LIMIT)
    return torch.where(alive.any(0), scale, torch.ones_like(scale))


class _Parameters:
    """New values of weights and biases, float64 until they are done; a batch norm keeps its running statistics."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.values = graph, dict[tuple[fx.Node, str], Tensor]()

    def get(self, node: fx.Node, port: str) -> Tensor | None:
        old = parameter(self.graph, node, 1 if port == "weight" else 2)
        return self.values.get((node, port), None if old is None else old.double())

    def divide_output(self, node: fx.Node, scale: Tensor) -> None:
        for port in ("weight", "bias"):
            value = self.get(node, port)
            if value is not None:
                self.values[node, port] = value / scale.reshape(-1, *[1] * (value.ndim - 1))

    def multiply_input(self, node: fx.Node, scale: Tensor) -> None:
        weight = self.get(node, "weight")
        if weight is None:
            raise AssertionError(f"{node} of a channel group has no weight")
        if op_name(node) != "batch_norm":
            self.values[node, "weight"] = weight * _by_input(node, scale, weight)
            return
        # gain * (s x - mean) / deviation + offset, with the mean of x left as it stands.
        mean, variance = (parameter(self.graph, node, index).double() for index in (3, 4))  # pyright: ignore[reportOptionalMemberAccess]
        steep = weight / torch.sqrt(variance + float(node.args[7]))  # pyright: ignore[reportArgumentType]
        offset = self.get(node, "bias")
        self.values[node, "weight"] = weight * scale
        self.values[node, "bias"] = (0.0 if offset is None else offset) + steep * mean * (scale - 1)

    def edits(self, names: Mapping[fx.Node, str]) -> list[Replace]:
        found = []
        for (node, port), value in self.values.items():
            kind = parameter(self.graph, node, 1).dtype  # pyright: ignore[reportOptionalMemberAccess]
            found.append(Replace(site_of(names[node], port), value.to(kind)))
        return found


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
        first, second = _own_weight(graph, node), _own_weight(graph, consumer)
        if first is None or second is None or len(first) != second.shape[1] * conv_groups(consumer):
            continue
        # What an earlier pair did to this operator's input channels is already in its weights.
        if node in out_scale:
            first = first * _by_input(node, out_scale[node], first)
        r1 = first.abs().flatten(1).amax(1)
        r2 = _range_by_input(graph, consumer)
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


def _own_weight(graph: Graph, node: fx.Node) -> Tensor | None:
    argument = node.args[1]
    shared = isinstance(argument, fx.Node) and len(argument.users) > 1
    return None if shared else parameter(graph, node, 1)


def _range_by_input(graph: Graph, node: fx.Node) -> Tensor:
    """Return the largest absolute weight that reads each input channel."""
    weight, groups = parameter(graph, node, 1), conv_groups(node)
    if weight is None:
        raise AssertionError(f"{node} has no weight")
    grouped = weight.abs().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return grouped.amax((1, 3)).flatten()


def _by_input(node: fx.Node, scale: Tensor, weight: Tensor) -> Tensor:
    """Return one scale per input channel in the shape of a weight: row g for the channels of group g."""
    groups = conv_groups(node)
    rows = scale.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1).reshape(weight.shape[:2])
    return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))
