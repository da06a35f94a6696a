"""Which rounds are judged together, and at which operators: the smallest parts of a graph that a search looks at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.realise import source
from seatrial.core.sites import Site, op_name, operators
from seatrial.quant.operator_kinds import is_parameter, moves


@dataclass(frozen=True, eq=False)
class Unit:
    """Sites, the operators whose outputs tell how good their grids are, and what moves values between them."""

    sites: tuple[Site, ...]
    layers: tuple[fx.Node, ...]
    moves: tuple[fx.Node, ...]
    judges: Mapping[Site, tuple[fx.Node, ...]]
    """The layers that each site has an effect on."""

    @property
    def given(self) -> tuple[fx.Node, ...]:
        """The values that moves and layers read from outside."""
        read = [value for node in (*self.moves, *self.layers) for value in node.all_input_nodes]
        inputs = [node for node in self.layers if node.op == "placeholder"]
        return tuple(dict.fromkeys(value for value in (*read, *inputs) if value not in self.moves))


def judged_units(graph: Graph, sites: Iterable[Site]) -> list[Unit]:
    """Return the units of these sites, in the order in which their last layers are computed.

    A weight is judged at its operator, an activation at the first operators behind it that do more than move values;
    a value that moves on with a round of its own, or out of the network, is judged itself. Sites that share a layer
    are in one unit: the operands of a product, a linear operator's input and weight, queries, keys and values that
    read one norm.
    """
    named, sites = operators(graph), list(sites)
    order = {node: index for index, node in enumerate(graph.nodes())}
    rounded = {named[site.operator] for site in sites if site.port == "output"}
    judged = {site: _judges(named[site.operator], site, rounded) for site in sites}
    found: list[tuple[set[Site], set[fx.Node], set[fx.Node]]] = []
    for site, (layers, moved) in judged.items():
        same = [unit for unit in found if unit[1] & layers]
        joined = ({site}, set(layers), set(moved))
        for unit in same:
            for mine, theirs in zip(joined, unit, strict=True):
                mine |= theirs  # pyright: ignore[reportOperatorIssue]
        found = [unit for unit in found if unit not in same] + [joined]
    units = [
        Unit(
            tuple(site for site in sites if site in of),
            tuple(sorted(layers, key=order.__getitem__)),
            tuple(sorted(moved, key=order.__getitem__)),
            {site: tuple(sorted(judged[site][0], key=order.__getitem__)) for site in sites if site in of},
        )
        for of, layers, moved in found
    ]
    return sorted(units, key=lambda unit: order[unit.layers[-1]])


def _judges(node: fx.Node, site: Site, rounded: set[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
    """Return the layers of a site and the operators that move its values there."""
    value = source(node, site.port)
    layers: set[fx.Node] = set()
    moved: set[fx.Node] = set()
    waiting = [(value, reader) for reader in value.users] if site.port == "output" else [(value, node)]
    while waiting:
        read, reader = waiting.pop()
        if op_name(reader) == "sym_size":
            continue
        if moves(reader) and reader not in rounded and not is_parameter(read):
            if reader not in moved:
                moved.add(reader)
                waiting += [(reader, user) for user in reader.users]
        elif reader.op == "output" or not _is_real(reader):
            layers.add(read)
        else:
            layers.add(reader)
    return layers or {value}, moved


def _is_real(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
