"""Look at the tensors of a graph while it runs, one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.predictor import Inputs


class _Watching(fx.Interpreter):
    """Runs a graph, shows chosen values, and frees the others as soon as nobody reads them."""

    def __init__(self, graph: Graph, seen: Mapping[fx.Node, Callable[[Tensor], None]]) -> None:
        super().__init__(graph.module, garbage_collect_values=True)
        self.seen = seen
        self.extra_traceback = False  # errors are ours and told as they are

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.seen:
            self.seen[n](value)
        return value


def tensors_of(graph: Graph, inputs: Inputs) -> tuple[Tensor, ...]:
    """Return a batch as positional tensors in the order of the graph's inputs."""
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs[spec.name] for spec in graph.inputs)


def watch(graph: Graph, batches: Sequence[Inputs], seen: Mapping[fx.Node, Callable[[Tensor], None]]) -> None:
    """Run every batch and call `seen[node]` with the node's value; nodes belong to `graph.module`."""
    runner = _Watching(graph, seen)
    with torch.no_grad():
        for batch in batches:
            runner.run(*tensors_of(graph, batch))
