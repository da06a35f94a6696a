"""Run a graph batch by batch from one stop to the next, so that what is found at a stop counts behind it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.predictor import Inputs
from seatrial.core.sites import attribute
from seatrial.errors import not_finite
from seatrial.numerics.observe import tensors_of
from seatrial.numerics.walk import call
from seatrial.quant.channel_ranges import kept_rows, token_mask


class StagedRun:
    """Iterating yields the nodes of `stops` in order of execution, each when all batches have reached it.

    Until the next step `seen` gives the values there, and `put_weight` changes what operators behind it compute.
    Between stops a batch runs alone; at a stop only values that something behind it reads are held, for all batches.
    """

    def __init__(self, graph: Graph, batches: Sequence[Inputs], stops: Collection[fx.Node]) -> None:
        self._module, self._stops = graph.module, stops
        self._nodes = graph.nodes()
        self._rows = [tensors_of(graph, batch) for batch in batches]
        self._masks = [token_mask(graph, row) for row in self._rows]
        self._held: list[dict[fx.Node, Any]] = [{} for _ in batches]
        self._weights: dict[fx.Node, Tensor] = {}
        self._stop: fx.Node | None = None

    def __iter__(self) -> Iterator[fx.Node]:
        order = {node: index for index, node in enumerate(self._nodes)}
        last = {node: max((order[user] for user in node.users), default=order[node]) for node in self._nodes}
        start = 0
        for stop in sorted(self._stops, key=order.__getitem__):
            part = self._nodes[start : order[stop] + 1]
            for held, row in zip(self._held, self._rows, strict=True):
                self._run(part, held, iter(row), last, order)
            start, self._stop = order[stop] + 1, stop
            yield stop

    def seen(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the value at the stop and the attention mask of each batch, None where the graph has no mask."""
        assert self._stop is not None
        for held, mask in zip(self._held, self._masks, strict=True):
            yield held[self._stop], mask

    def put_weight(self, operator: fx.Node, weight: Tensor) -> None:
        """Let an operator behind the stop compute with another weight."""
        self._weights[operator] = weight

    def _run(
        self,
        part: Sequence[fx.Node],
        held: dict[fx.Node, Any],
        row: Iterator[Tensor],
        last: dict[fx.Node, int],
        order: dict[fx.Node, int],
    ) -> None:
        for node in part:
            if node.op == "placeholder":
                held[node] = next(row)
            elif node.op == "get_attr":
                held[node] = attribute(self._module, str(node.target))
            else:
                held[node] = self._called(node, held)
            for read in node.all_input_nodes:
                if last[read] <= order[node]:
                    del held[read]

    def _called(self, node: fx.Node, held: dict[fx.Node, Any]) -> Any:
        weight = self._weights.get(node)
        with torch.no_grad():
            return call(node, lambda read: held[read] if weight is None or read is not node.args[1] else weight)


def gram_of(run: StagedRun, operator: str) -> Float[Tensor, "channels channels"]:
    """Return X^T X, float64, of the value at the stop of a run, over the tokens of all batches that masks keep.

    Raises BadInput, naming the operator that reads it, where it is not finite.
    """
    gram: Tensor = torch.zeros(())
    for value, mask in run.seen():
        rows = kept_rows(value, mask)
        gram = gram + (rows.T @ rows).double()
    if not bool(gram.isfinite().all()):
        raise not_finite(f"{operator}:input0")
    return gram
