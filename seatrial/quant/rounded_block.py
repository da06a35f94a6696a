"""One block of a network with rounds: its output for any grid at one of its sites, the others as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx

from seatrial.core.further_rounds import ROUNDS
from seatrial.core.graph import Graph
from seatrial.core.grids import Affine
from seatrial.core.insert_round import fake
from seatrial.core.realise import realise
from seatrial.core.recipe import Recipe
from seatrial.core.sites import Site, attribute, op_name, operators
from seatrial.numerics.walk import call
from seatrial.quant.blocks import Block

Values = Callable[[fx.Node], Any]
"""What a node of the network gives."""


@final
@dataclass(frozen=True, eq=False)
class RoundedNetwork:
    """A realised graph whose static rounds can be changed: its operators by name, and its rounds by site."""

    graph: Graph
    operators: Mapping[str, fx.Node]
    rounds: Mapping[Site, fx.Node]
    grids: dict[Site, Affine]

    @staticmethod
    def of(graph: Graph, recipe: Recipe) -> RoundedNetwork:
        """Realise a recipe; what it gives is changed by `put`."""
        realised = realise(graph, recipe)
        rounds = {
            Site.parse(str(node.meta["site"])): node
            for node in realised.nodes()
            if op_name(node) in ROUNDS and "site" in node.meta
        }
        grids = {edit.site: edit.grid for edit in recipe.rounds if isinstance(edit.grid, Affine)}
        return RoundedNetwork(realised, operators(realised), rounds, grids)

    def put(self, site: Site, grid: Affine) -> None:
        """Change the grid of a static round."""
        self.grids[site] = grid
        node = self.rounds[site]
        value, scale, zero, *_ = node.args
        assert isinstance(scale, fx.Node)
        assert isinstance(zero, fx.Node)
        for held, new in ((scale, grid.scale), (zero, grid.zero_point)):
            attribute(self.graph.module, str(held.target)).copy_(new)
        axis = -1 if grid.axis is None else grid.axis
        node.args = (value, scale, zero, *grid.codes, axis)


@final
class RoundedBlock:
    """The operators and rounds of one block, computed for one batch on grids that can be tried.

    `values` gives what nodes of the network outside of the block give.
    """

    def __init__(self, network: RoundedNetwork, block: Block, values: Values) -> None:
        self._network = network
        self._rounds = {site: node for site, node in network.rounds.items() if site.operator in block.operators}
        inside = {*(network.operators[name] for name in block.operators), *self._rounds.values()}
        self._nodes = [node for node in network.graph.nodes() if node in inside]
        last = network.operators[block.output]
        self._target = network.rounds.get(Site.parse(f"{block.output}:output"), last)
        self._held: dict[fx.Node, Any] = {}
        for node in self._nodes:
            for read in node.all_input_nodes:
                if read not in inside:
                    constant = read.op == "get_attr"
                    self._held[read] = attribute(network.graph.module, str(read.target)) if constant else values(read)
        self._run(self._nodes, self._held)
        self._after = {site: self._reached(node) for site, node in self._rounds.items()}

    @property
    def sites(self) -> list[Site]:
        """The sites of the block, in order of the operators that they belong to."""
        order = {node: index for index, node in enumerate(self._nodes)}
        named = self._network.operators
        return sorted(self._rounds, key=lambda site: (order[named[site.operator]], site.port))

    @property
    def output(self) -> Tensor:
        """What the block gives with the grids that were put."""
        return self._held[self._target]

    @property
    def weights(self) -> dict[fx.Node, Tensor]:
        """The rounded weights, by the node that rounds them."""
        return {node: self._held[node] for site, node in self._rounds.items() if site.port == "weight"}

    def source(self, site: Site) -> Tensor:
        """Return the value that is rounded at a site, made on the grids that were put."""
        return self._held[self._rounds[site].args[0]]  # pyright: ignore[reportArgumentType]

    def grid(self, site: Site) -> Affine:
        """Return the grid that was put last at a static round, or that it was realised with."""
        return self._network.grids[site]

    def tried(self, site: Site, grid: Affine) -> Tensor:
        """Return the block's output with another grid at one site."""
        node = self._rounds[site]
        after = self._after[site]
        last = {read: other for other in after for read in other.all_input_nodes}
        changed = {node: fake(self.source(site), grid)}
        for other in after:
            self._run([other], changed)
            for read in other.all_input_nodes:
                if last[read] is other and read is not self._target:
                    changed.pop(read, None)
        return changed.get(self._target, self.output)

    def put(self, site: Site, grid: Affine) -> None:
        """Keep a grid."""
        self._network.put(site, grid)
        node = self._rounds[site]
        self._run([node, *self._after[site]], self._held)

    def _run(self, nodes: list[fx.Node], held: dict[fx.Node, Any]) -> None:
        def value(read: fx.Node) -> Any:
            return held[read] if read in held else self._held[read]

        with torch.no_grad():
            for node in nodes:
                held[node] = call(node, value)

    def _reached(self, first: fx.Node) -> list[fx.Node]:
        """Return what depends on a node, in order."""
        reached = {first}
        for node in self._nodes:
            if node not in reached and any(read in reached for read in node.all_input_nodes):
                reached.add(node)
        return [node for node in self._nodes if node in reached and node is not first]
