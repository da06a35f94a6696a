"""A linear operator that takes a migration back, with rounded input and weight, for many scales at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, fx

from seatrial.core.further_rounds import in_groups
from seatrial.core.graph import Graph
from seatrial.core.grids import Dynamic
from seatrial.core.insert_round import fake
from seatrial.core.precision import Precision
from seatrial.core.sites import attribute, op_name
from seatrial.numerics.ranges import grid_for, weight_grid
from seatrial.numerics.walk import call
from seatrial.quant.channel_ranges import ChannelRanges


@dataclass(frozen=True, eq=False)
class MigratedConsumer:
    """Computes Q((x - shift) / scale) Q(W scale)^T + b + shift W^T for values x that the operator reads.

    `asked` and `asked_weight` say how input and weight are rounded, None: not at all. `ranges` are those of the
    channels of x, from which static grids come. `rows`: only these outputs (linear operators alone).
    """

    graph: Graph
    node: fx.Node
    asked: Precision | None
    asked_weight: Precision | None
    ranges: ChannelRanges
    shift: Float[Tensor, " channels"]
    scale: Float[Tensor, " channels"] | None = None
    rows: Tensor | None = None

    def with_scale(self, scale: Float[Tensor, " channels"]) -> MigratedConsumer:
        """Return the operator with one scale."""
        return replace(self, scale=scale)

    @property
    def outputs(self) -> int:
        """The number of output channels."""
        return len(self._weight)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output for the scale that was set."""
        assert self.scale is not None
        return self.rounded(x, self.scale[None])[0]

    def unrounded(self, x: Tensor) -> Tensor:
        """Return what the operator itself gives."""
        return self._with_bias(self._applied(x, self._weight), self._bias)

    def rounded(self, x: Tensor, scales: Float[Tensor, "tried channels"]) -> Tensor:
        """Return [tried, ...]: the output for each scale."""
        inputs, weights = self._rounded_inputs(x, scales), self._rounded_weights(scales)
        if op_name(self.node) == "linear":
            outputs = torch.bmm(inputs.flatten(1, -2), weights.transpose(1, 2))
            outputs = outputs.unflatten(1, inputs.shape[1:-1])
        else:
            outputs = torch.vmap(self._applied)(inputs, weights)
        return self._with_bias(outputs, self._moved_bias())

    def _applied(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the operator without its bias."""
        given = {1: weight, 0: x}
        values = {read: given.get(index) for index, read in enumerate(self.node.args) if isinstance(read, fx.Node)}
        return call(self.node, values.__getitem__)

    def _with_bias(self, outputs: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:
            outputs += bias if op_name(self.node) == "linear" else bias[:, None, None]
        return outputs

    def _rounded_inputs(self, x: Tensor, scales: Tensor) -> Tensor:
        shape = [1] * x.ndim
        shape[-1 if op_name(self.node) == "linear" else 1] = -1
        moved = (x - self.shift.reshape(shape))[None] / scales.reshape(len(scales), *shape)
        wanted = self.asked
        if wanted is None or wanted.float_type is not None:
            return moved
        if wanted.dynamic:
            return fake(moved, Dynamic(wanted.bits, wanted.symmetric, wanted.group))
        low = ((self.ranges.low - self.shift) / scales).amin(1)
        high = ((self.ranges.high - self.shift) / scales).amax(1)
        for index in range(len(scales)):
            moved[index] = fake(moved[index], grid_for(float(low[index]), float(high[index]), wanted))
        return moved

    def _rounded_weights(self, scales: Tensor) -> Tensor:
        """Return [tried, outputs, inputs, ...] with min-max grids of each scaled weight."""
        weight = self._weight
        scaled = weight[None] * scales.reshape(len(scales), 1, -1, *[1] * (weight.ndim - 2))
        wanted = self.asked_weight
        if wanted is None or wanted.float_type is not None:
            return scaled
        group = wanted.group or 0
        # A grid for each row of this view: of a tensor, an output channel, or a group of its inputs.
        view = scaled.flatten(1) if wanted.axis is None and not group else scaled.flatten(2).flatten(0, 1)
        by_row = replace(wanted, axis=0, group=None)
        if not group:
            return fake(view, weight_grid(view, by_row)).reshape(scaled.shape)
        groups = in_groups(view, group)
        rounded = fake(groups.flatten(0, 1), weight_grid(groups.flatten(0, 1), by_row))
        return rounded.reshape(len(view), -1)[:, : view.shape[1]].reshape(scaled.shape)

    def _moved_bias(self) -> Tensor | None:
        if not bool(self.shift.any()):
            return self._bias
        weight = self._weight
        extra = weight.reshape(*weight.shape[:2], -1).sum(2) @ self.shift
        return extra if self._bias is None else self._bias + extra

    @property
    def _weight(self) -> Tensor:
        weight = self._constant(1)
        assert weight is not None
        return weight

    @property
    def _bias(self) -> Tensor | None:
        return self._constant(2)

    def _constant(self, index: int) -> Tensor | None:
        read = self.node.args[index] if len(self.node.args) > index else None
        if not isinstance(read, fx.Node):
            return None
        held = attribute(self.graph.module, str(read.target)).detach()
        return held if self.rows is None else held[self.rows]
