"""Walk through a graph with all that comes before rounded already, on grids read off on the way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.grids import Dynamic, FloatType, Grid
from seatrial.core.insert_round import fake
from seatrial.core.precision import Precision
from seatrial.core.realise import source
from seatrial.core.sites import Site, operators
from seatrial.errors import not_finite
from seatrial.numerics.ranges import grid_for
from seatrial.numerics.walk import Walk, call
from seatrial.quant.nearest import grid_of_weight


class RoundedWalk:
    """A `Walk` whose operators read rounded values: min-max grids, read off the first batch when it is there.

    As in a walk, an operator's result may be `put` before the next step; it is then taken as it is. Values that are
    asked for ahead of their turn are unrounded. Rounds at sites in `left_out` are passed by.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Sequence[tuple[Tensor, ...]],
        precision: Mapping[Site, Precision],
        left_out: Container[Site] = (),
    ) -> None:
        self._walk, named = Walk(graph, batches), operators(graph)
        self._asked: dict[fx.Node, dict[Site, Precision]] = defaultdict(dict)
        for site, wanted in precision.items():
            if site not in left_out and site.operator in named:
                self._asked[named[site.operator]][site] = wanted
        self._put: set[fx.Node] = set()
        self._holders = [node for node in named.values() if node.op == "placeholder" and node in self._asked]

    def __iter__(self) -> Iterator[fx.Node]:
        for node in self._holders:
            self._walk.put(node, self._at_output(node, self._walk.values(node)))
        for node in self._walk:
            yield node
            if node not in self._put and node in self._asked:
                self._walk.put(node, self._at_output(node, self._computed(node)))

    def values(self, node: fx.Node) -> list[Any]:
        """Return what a node gives for each batch."""
        return self._walk.values(node)

    def put(self, node: fx.Node, values: Sequence[Any]) -> None:
        """Let readers of `node` get these values."""
        self._put.add(node)
        self._walk.put(node, values)

    def _computed(self, node: fx.Node) -> list[Any]:
        read = {value: self._walk.values(value) for value in node.all_input_nodes}
        for site, wanted in self._asked[node].items():
            if site.port != "output":
                value = source(node, site.port)
                read[value] = _rounded(read[value], wanted, site)
        count = len(next(iter(read.values()))) if read else 0
        with torch.no_grad():
            return [call(node, lambda value, row=row: read[value][row]) for row in range(count)]

    def _at_output(self, node: fx.Node, values: list[Any]) -> list[Any]:
        for site, wanted in self._asked[node].items():
            if site.port == "output":
                values = _rounded(values, wanted, site)
        return values


def _rounded(values: list[Any], wanted: Precision, site: Site) -> list[Any]:
    grid = grid_of(values[0], wanted, site)
    if site.port == "weight":
        return [fake(values[0], grid)] * len(values)
    return [fake(value, grid) for value in values]


def grid_of(value: Tensor, wanted: Precision, site: Site) -> Grid:
    """Return the min-max grid of one value for what is asked; raises BadInput, naming the site, for no numbers."""
    if wanted.float_type is not None:
        return FloatType(wanted.float_type)
    if site.port == "weight":
        return grid_of_weight(value, wanted)
    if wanted.dynamic:
        return Dynamic(wanted.bits, wanted.symmetric, wanted.group)
    low, high = (float(end) for end in torch.aminmax(value))
    if not torch.isfinite(torch.tensor([low, high])).all():
        raise not_finite(site)
    return grid_for(low, high, wanted)
