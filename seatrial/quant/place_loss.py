"""The loss of a migration: how far rounding moves what follows, for many scales at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, fx

from seatrial.core.sites import op_name
from seatrial.quant.channel_ranges import rows_read
from seatrial.quant.migrated_consumer import MigratedConsumer
from seatrial.quant.place_outputs import judged_outputs, layer_outputs
from seatrial.quant.rounded_walk import RoundedWalk

_VALUES = 2**21
"""Float values that the scales tried at once may hold: few, so that they stay in the caches."""
_OUTPUTS = 1024
"""Outputs of a layer (a feed-forward one, the words of a head) that are looked at, evenly spread."""


class PlaceLoss:
    """Mean over tokens of the squared error of the judged outputs, summed over channels.

    Built on what the consumers of a place read, `read`, for the samples of the walk's second batch; `mask` leaves out
    what fills sentences up.
    """

    def __init__(
        self,
        consumers: Mapping[fx.Node, MigratedConsumer],
        read: Mapping[fx.Node, Tensor],
        walk: RoundedWalk,
        mask: Tensor | None,
        objective: Literal["output", "layers"],
    ) -> None:
        nodes = list(consumers)
        self._segment = (judged_outputs if objective == "output" else layer_outputs)(nodes)
        self._mask = mask
        self._read, self._consumers = dict(read), dict(consumers)
        if not self._segment.nodes:
            for node in nodes:
                self._thin_out(node)
        self._boundary = {value: walk.values(value)[1] for value in self._segment.boundary}
        outputs = [self._consumers[node].unrounded(self._read[node]) for node in nodes]
        self._held = max(1, sum(value.numel() for value in (*self._read.values(), *outputs)))
        """How many values the consumers and the segment hold for one scale."""
        self._wanted = self._judged(outputs, self._counted)

    def of(self, scales: Float[Tensor, "tried channels"]) -> list[float]:
        """Return the loss of each scale."""
        found: list[float] = []
        together = max(1, _VALUES // self._held)
        for part in scales.split(together):
            outputs = [consumer.rounded(self._read[node], part) for node, consumer in self._consumers.items()]
            made = torch.vmap(self._judged_of)(*outputs)
            error = sum(
                (value - wanted).square_().flatten(1).sum(1, dtype=torch.float64) / len(wanted)
                for value, wanted in zip(made, self._wanted, strict=True)
            )
            assert isinstance(error, Tensor)
            found += error.tolist()
        return found

    def _judged_of(self, *outputs: Tensor) -> list[Tensor]:
        return self._judged(outputs)

    def _judged(
        self, outputs: Sequence[Tensor], change: Callable[[fx.Node, Any], Any] = lambda node, value: value
    ) -> list[Tensor]:
        """Return the judged outputs as rows of channels."""
        made = self._segment(outputs, self._boundary, change) if self._segment.nodes else outputs
        return [self._rows(value) for value in made]

    def _rows(self, value: Tensor) -> Tensor:
        """Return a value as rows of channels, zero for tokens that do not count."""
        rows = value.reshape(-1, value.shape[-1])
        if self._mask is None or len(rows) != self._mask.numel():
            return rows
        return rows * (self._mask.reshape(-1, 1) > 0)

    def _thin_out(self, node: fx.Node) -> None:
        """Judge a layer by its own output: on its rows alone, and on some of its outputs where there are very many."""
        consumer = self._consumers[node]
        if op_name(node) != "linear":
            return
        self._read[node] = rows_read(node, self._read[node], self._mask)
        per_channel = consumer.asked_weight is None or consumer.asked_weight.axis == 0
        if consumer.outputs > _OUTPUTS and per_channel:
            step = -(-consumer.outputs // _OUTPUTS)
            self._consumers[node] = replace(consumer, rows=torch.arange(0, consumer.outputs, step))

    def _counted(self, node: fx.Node, value: object) -> object:
        self._held += value.numel() if isinstance(value, Tensor) else 0
        return value
