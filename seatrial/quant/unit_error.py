"""What the rounds of one unit do to the outputs of its layers, weighted by how much the loss minds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.grids import Grid, Grouped
from seatrial.core.insert_round import fake
from seatrial.core.realise import source
from seatrial.core.sites import Site, op_name, operators
from seatrial.numerics.walk import Walk, call
from seatrial.quant.judged_units import Unit

Values = Mapping[fx.Node, Sequence[Any]]
"""What nodes give, an entry for each batch."""


def values_of_units(
    graph: Graph, batches: Sequence[tuple[Tensor, ...]], units: Sequence[Unit]
) -> Iterator[tuple[Unit, Values]]:
    """Yield each unit with the unrounded values that it reads and gives, as soon as all are there; then let them go."""
    held: list[dict[fx.Node, list[Any]]] = [{} for _ in units]
    walk = Walk(graph, batches)
    needed = [set(unit.given) | set(unit.layers) for unit in units]
    for node in [node for node in graph.nodes() if node.op == "placeholder"]:
        for values, wanted in zip(held, needed, strict=True):
            if node in wanted:
                values[node] = walk.values(node)
    left = dict(enumerate(units))
    for node in chain([None], walk):
        for number, unit in list(left.items()):
            if node is not None and node in needed[number]:
                held[number][node] = walk.values(node)
            constants = {value for value in needed[number] if value.op == "get_attr"}
            if needed[number] - constants <= held[number].keys():
                held[number] |= {value: walk.values(value) for value in constants}
                del left[number]
                yield unit, held[number]
                held[number] = {}


class UnitError:
    """The sum over samples and outputs of (g (O - O^))^2 of the layers of a unit, for grids at its sites.

    O is what a layer of the unrounded network gives, O^ the same from rounded inputs and weights; what is not rounded
    in this unit is as the unrounded network has it. g is the gradient at O. `values` holds what the unit reads and
    what its layers give, `grids` those in place: `put` changes one, `of` tells the error if one was another.

    Source: Yuan et al. 2022 (PTQ4ViT), eq. 7.
    """

    def __init__(self, graph: Graph, unit: Unit, values: Values, gradients: Values, grids: Mapping[Site, Grid]) -> None:
        named = operators(graph)
        self._unit, self._values, self._nodes = unit, values, {site: named[site.operator] for site in unit.sites}
        self.grids = {site: grids[site] for site in unit.sites}
        self._written = {node: site for site, node in self._nodes.items() if site.port == "output"}
        self._edges = {
            (node, source(node, site.port)): site for site, node in self._nodes.items() if site.port != "output"
        }
        self._behind = {site: self._moves_behind(site) for site in unit.sites}
        self._held: dict[object, Any] = {}
        self._batches = len(values[unit.layers[0]])
        self._slopes = _scaled({layer: gradients[layer] for layer in unit.layers})

    @property
    def is_flat(self) -> bool:
        """Whether no gradient differs from zero: errors count as they are then."""
        return not self._slopes

    def put(self, site: Site, grid: Grid) -> None:
        """Let a site have this grid from now on."""
        self.grids[site] = grid
        self._held.clear()

    def channels(self, site: Site) -> int:
        """Return how many output channels have a scale to themselves at a site: 1 for an activation."""
        axis = _output_axis(self._nodes[site], site, self.grids[site])
        return 1 if axis is None else self._values[self._nodes[site]][0].shape[axis]

    def of(self, site: Site, grid: Grid) -> Float[Tensor, " channels"]:
        """Return the error with this grid at a site, float64, of each of its output channels."""
        axis, found = _output_axis(self._nodes[site], site, grid), torch.zeros((), dtype=torch.float64)
        for layer in self._unit.judges[site]:
            for row in range(self._batches):
                made, wanted = self._made(layer, row, (site, grid)), self._values[layer][row]
                error = made - wanted
                if self._slopes:
                    error.mul_(self._slopes[layer][row])
                squares = error.square_()
                by_channel = squares.sum()[None] if axis is None else squares.movedim(axis, -1).flatten(0, -2).sum(0)
                found = found + by_channel.double()
        return found

    def _made(self, layer: fx.Node, row: int, trial: tuple[Site, Grid]) -> Tensor:
        if layer.op == "placeholder" or layer in self._unit.moves:
            return self._given(layer, row, trial)
        made = call(layer, lambda value: self._as_read(value, layer, row, trial))
        site = self._written.get(layer)
        if site is not None and layer in self._unit.judges[site]:  # its round is judged here, by itself
            made = fake(made, trial[1] if site == trial[0] else self.grids[site])
        return made

    def _as_read(self, value: fx.Node, reader: fx.Node, row: int, trial: tuple[Site, Grid]) -> Any:
        """Return what an operator reads of a value."""
        site = self._edges.get((reader, value))
        if site is None:
            return self._given(value, row, trial)
        row = 0 if value.op == "get_attr" else row
        if site == trial[0]:
            return fake(self._given(value, row, trial), trial[1])
        return self._kept(
            (value, reader, row), value, trial[0], lambda: fake(self._given(value, row, trial), self.grids[site])
        )

    def _given(self, value: fx.Node, row: int, trial: tuple[Site, Grid]) -> Any:
        """Return what an operator gives, rounded if that is asked for at its output."""

        def made() -> Any:
            if value in self._unit.moves:
                found = call(value, lambda read: self._as_read(read, value, row, trial))
            else:
                found = self._values[value][row]
            if site is None:
                return found
            return fake(found, trial[1] if site == trial[0] else self.grids[site])

        site = self._written.get(value)
        return made() if site == trial[0] else self._kept((value, row), value, trial[0], made)

    def _kept(self, key: object, value: fx.Node, tried: Site, make: Callable[[], Any]) -> Any:
        """Return a value that is kept from trial to trial, unless it stands behind the site that is tried."""
        if value in self._behind[tried] or self._written.get(value) == tried:
            return make()
        if key not in self._held:
            self._held[key] = make()
        return self._held[key]

    def _moves_behind(self, site: Site) -> set[fx.Node]:
        node = self._nodes[site]
        found = set(self._unit.moves) & ({node} if site.port != "output" else set(node.users))
        for move in self._unit.moves:
            if any(read in found for read in move.all_input_nodes):
                found.add(move)
        return found


def _output_axis(node: fx.Node, site: Site, grid: Grid) -> int | None:
    """Return the axis of the outputs of which each reads one scale of a weight alone; None where there is none."""
    axis = None if site.port != "weight" else 0 if isinstance(grid, Grouped) else getattr(grid, "axis", None)
    kind = op_name(node)
    if kind == "linear" and axis == 0:
        return -1
    by_row = kind in ("conv1d", "conv2d") and axis == 0
    by_column = kind == "conv_transpose2d" and axis == 1 and (len(node.args) <= 6 or node.args[6] == 1)
    return 1 if by_row or by_column else None


def _scaled(gradients: Values) -> dict[fx.Node, list[Tensor]]:
    """Return gradients over the largest of them, so that squares stay numbers; none where all are zero."""
    top = max(float(one.abs().max()) if one.numel() else 0.0 for of in gradients.values() for one in of)
    return {layer: [one / top for one in of] for layer, of in gradients.items()} if top > 0 else {}
