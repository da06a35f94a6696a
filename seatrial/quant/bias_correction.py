"""Bias correction: take back the mean error that rounded weights put on each output channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.predictor import Inputs
from seatrial.core.recipe import Affine, Replace, Round
from seatrial.core.sites import Site, attribute, op_name, operators
from seatrial.numerics.observe import watch
from seatrial.numerics.ranges import fake


def correct_biases(graph: Graph, calibration: Sequence[Inputs], rounds: Sequence[Round]) -> list[Replace]:
    """Return new biases b - E[(W_rounded - W) x], one value for each output channel.

    E runs over the calibration samples and, for convolutions, over positions: by linearity the operator is applied
    once to the mean input, padding included. Operators whose bias is not a constant are left alone.

    Source: Nagel et al. 2019, section 4.2, eq. 18, with the expected input taken from data (their section 4.2.1).
    """
    named = operators(graph)
    grids = {edit.site.operator: edit.grid for edit in rounds if edit.site.port == "weight"}
    means: dict[str, _Mean] = {}
    seen: dict[fx.Node, list[_Mean]] = {}
    for name, grid in grids.items():
        node = named[name]
        if isinstance(grid, Affine) and op_name(node) in ("conv2d", "linear") and _constant_bias(node):
            means[name] = _Mean(keep_positions=op_name(node) == "conv2d")
            seen.setdefault(node.args[0], []).append(means[name])  # pyright: ignore[reportArgumentType]
    watch(graph, calibration, {node: _to_all(watchers) for node, watchers in seen.items()})
    edits = []
    for name, mean in means.items():
        node, grid = named[name], grids[name]
        weight = attribute(graph.module, str(node.args[1].target))  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        error = fake(weight, grid) - weight  # pyright: ignore[reportArgumentType]
        shift = _mean_output(node, mean.value, error)
        bias = node.args[2] if len(node.args) > 2 else None
        old = attribute(graph.module, str(bias.target)) if isinstance(bias, fx.Node) else torch.zeros_like(shift)
        edits.append(Replace(Site.parse(f"{name}:bias"), (old - shift).detach().clone()))
    return edits


class _Mean:
    """The mean of a tensor over samples: [1, channels, height, width] for pictures, [channels] else."""

    def __init__(self, *, keep_positions: bool) -> None:
        self.keep_positions, self.total, self.count = keep_positions, torch.zeros(()), 0

    def see(self, value: Tensor) -> None:
        rows = value.detach() if self.keep_positions else value.detach().flatten(0, -2)
        self.total = self.total + rows.double().sum(0)
        self.count += rows.shape[0]

    @property
    def value(self) -> Tensor:
        return (self.total / self.count).float()[None]


def _to_all(watchers: list[_Mean]) -> Callable[[Tensor], None]:
    def see(value: Tensor) -> None:
        for watcher in watchers:
            watcher.see(value)

    return see


def _constant_bias(node: fx.Node) -> bool:
    bias = node.args[2] if len(node.args) > 2 else None
    return bias is None or (isinstance(bias, fx.Node) and bias.op == "get_attr")


def _mean_output(node: fx.Node, mean_input: Tensor, weight: Tensor) -> Tensor:
    with torch.no_grad():
        if op_name(node) == "linear":
            return torch.nn.functional.linear(mean_input, weight)[0]
        out = node.target(mean_input, weight, None, *node.args[3:])  # pyright: ignore[reportCallIssue]
        return out.mean((0, 2, 3))
