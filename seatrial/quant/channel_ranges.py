"""Lowest and highest value of each channel of a tensor, without what fills sentences up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, fx

from seatrial.core.channel_paths import channel_axis
from seatrial.core.graph import Graph
from seatrial.errors import not_finite


@dataclass(frozen=True, eq=False)
class ChannelRanges:
    """Lowest and highest value of each channel, over all tokens or pixels."""

    low: Float[Tensor, " channels"]
    high: Float[Tensor, " channels"]

    def joined(self, other: ChannelRanges) -> ChannelRanges:
        """Return the ranges that hold both."""
        return ChannelRanges(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))

    @property
    def middle(self) -> Float[Tensor, " channels"]:
        """The middle of each range."""
        return (self.low + self.high) / 2

    @property
    def largest(self) -> Float[Tensor, " channels"]:
        """The largest absolute value of each channel."""
        return torch.maximum(self.low.abs(), self.high.abs())


def rows_read(consumer: fx.Node, value: Tensor, mask: Tensor | None) -> Float[Tensor, "rows channels"]:
    """Return what a linear operator or a convolution reads as rows of channels, without those outside of `mask`."""
    axis = channel_axis(consumer)
    if axis == value.ndim - 1:
        return kept_rows(value, mask)
    return value.movedim(axis, -1).reshape(-1, value.shape[axis])


def kept_rows(value: Tensor, mask: Tensor | None) -> Float[Tensor, "rows channels"]:
    """Return a value with channels last as rows of channels; tokens outside of `mask` are left out.

    mask: [batch, length], None where every row counts; it counts for values with a row for each token.
    """
    rows = value.reshape(-1, value.shape[-1])
    if mask is None or len(rows) != mask.numel():
        return rows
    return rows[mask.reshape(-1) > 0]


def ranges_of(rows: Float[Tensor, "rows channels"], site: object) -> ChannelRanges:
    """Return the ranges of rows of channels; raises BadInput, naming the site, where a value is not finite."""
    low, high = torch.aminmax(rows, dim=0)
    if not bool((low.isfinite() & high.isfinite()).all()):
        raise not_finite(site)
    return ChannelRanges(low, high)


def token_mask(graph: Graph, batch: Sequence[Tensor]) -> Tensor | None:
    """Return the attention mask [batch, length] among the inputs of a graph, None where it has none."""
    for spec, tensor in zip(graph.inputs, batch, strict=True):
        if spec.name == "attention_mask":
            return tensor
    return None
