"""Walk through a graph with a few batches at once; what is read off on the way may change what comes after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from seatrial.core.graph import Graph
from seatrial.core.sites import attribute


class Walk:
    """Computes the operators of a graph in order, each for every batch, and frees what nobody reads any more.

    Iterating yields each operator before it is computed. Until the next step the caller may read any value with
    `values` (what is not there yet is computed from what is) and replace the operator's result with `put`.
    `batches` are positional tensors, a tuple for each batch. Gradients are off.
    """

    def __init__(self, graph: Graph, batches: Sequence[tuple[Tensor, ...]]) -> None:
        self._graph, self._count = graph, len(batches)
        self._nodes = [node for node in graph.nodes() if node.op != "output"]
        self._held: dict[fx.Node, list[Any]] = {}
        holders = [node for node in self._nodes if node.op == "placeholder"]
        for index, node in enumerate(holders):
            self._held[node] = [batch[index] for batch in batches]

    def __iter__(self) -> Iterator[fx.Node]:
        waiting = {node: len(node.users) for node in self._nodes}
        for node in self._nodes:
            if node.op == "call_function":
                yield node
                self.values(node)
            for read in node.all_input_nodes:
                waiting[read] -= 1
                if not waiting[read]:
                    self._held.pop(read, None)
            if not waiting[node]:
                self._held.pop(node, None)

    def values(self, node: fx.Node) -> list[Any]:
        """Return what a node gives for each batch; everything it depends on that is missing is computed."""
        missing = [node]
        while missing:
            last = missing[-1]
            absent = [] if last in self._held else [read for read in last.all_input_nodes if read not in self._held]
            if absent:
                missing += absent
                continue
            missing.pop()
            if last not in self._held:
                self._held[last] = self._computed(last)
        return self._held[node]

    def put(self, node: fx.Node, values: Sequence[Any]) -> None:
        """Let readers of `node` get these values, one for each batch."""
        assert len(values) == self._count
        self._held[node] = list(values)

    def _computed(self, node: fx.Node) -> list[Any]:
        if node.op == "get_attr":
            return [attribute(self._graph.module, str(node.target))] * self._count
        with torch.no_grad():
            return [call(node, lambda read, i=i: self._held[read][i]) for i in range(self._count)]


def call(node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
    """Return what an operator gives where its arguments have these values."""
    args, kwargs = map_arg((node.args, node.kwargs), value)
    return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]


class Segment:
    """The operators between some values of a graph and some that depend on them: a function of the former.

    `starts` are given at each call, `boundary` are other values that it reads, given once (constants included).
    """

    def __init__(self, starts: Sequence[fx.Node], targets: Sequence[fx.Node]) -> None:
        self.starts, self.targets = tuple(starts), tuple(targets)
        after = set(starts)
        for node in _between(starts, targets):
            if node not in after and any(read in after for read in node.all_input_nodes):
                after.add(node)
        needed, waiting = set[fx.Node](), [node for node in targets if node in after]
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                if node not in self.starts:
                    waiting += [read for read in node.all_input_nodes if read in after]
        self.nodes = tuple(node for node in _between(starts, targets) if node in needed and node not in self.starts)
        inside = {*self.nodes, *self.starts}
        outside = [read for node in self.nodes for read in node.all_input_nodes if read not in inside]
        self.boundary = tuple(dict.fromkeys(outside))

    def __call__(
        self,
        given: Sequence[Any],
        boundary: Mapping[fx.Node, Any],
        change: Callable[[fx.Node, Any], Any] = lambda node, value: value,
    ) -> list[Any]:
        """Return the targets; `change` may replace the value of each operator on the way."""
        values = {**boundary, **dict(zip(self.starts, given, strict=True))}
        for node in self.nodes:
            values[node] = change(node, call(node, values.__getitem__))
        return [values[node] for node in self.targets]


def _between(starts: Sequence[fx.Node], targets: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the nodes of the graph from the first start to the last target."""
    every = list(starts[0].graph.nodes)
    order = {node: index for index, node in enumerate(every)}
    return every[min(order[node] for node in starts) : max(order[node] for node in targets) + 1]
