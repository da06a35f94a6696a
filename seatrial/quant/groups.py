"""Operator groups: what a search over precisions decides together, and which of them are neighbors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.realise import tensor_inputs
from seatrial.core.sites import op_name, shape_of
from seatrial.quant.operator_kinds import POOLS, WEIGHTED, is_gate, origin
from seatrial.quant.placement import quantizable

_Shape = tuple[str, ...]


@dataclass(frozen=True)
class OperatorGroup:
    """Operators that run in one precision: a convolution with its residual sum, a squeeze-and-excite branch, the
    linear operators that read one tensor, an attention product.

    `name` is that of its first operator, `kind` the operators' ATen names, `shapes` what latency depends on: two groups
    with equal shapes cost the same.
    """

    name: str
    operators: tuple[str, ...]
    kind: str
    shapes: _Shape


@dataclass(frozen=True)
class Neighbors:
    """A tensor that `reader` takes from `producer`; `shapes` is equal where a change of precision costs the same."""

    producer: str
    reader: str
    shapes: _Shape


@dataclass(frozen=True)
class Grouping:
    """The groups of a graph in execution order, and the edges between them."""

    groups: tuple[OperatorGroup, ...]
    neighbors: tuple[Neighbors, ...]


def group_operators(graph: Graph, rules: PlacementRules, *, keep: Iterable[str] = ()) -> Grouping:
    """Return the groups of all operators that may run in integers under these rules; `keep` leaves some out by glob.

    A residual sum belongs to the convolution before it that is executed last, a pooling to its reader, both sides of a
    squeeze-and-excite branch and its product together, linear operators that read one tensor too.

    Source: the tie groups of HAWQ-V3 (Yao et al. 2021, section 4.2), by what the CPU runtimes fuse.
    """
    nodes = quantizable(graph, rules, keep=keep)
    names = {node: name for name, node in nodes.items()}
    order = {name: index for index, name in enumerate(nodes)}
    leader = {name: name for name in nodes}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    def join(one: str, other: str) -> None:
        first, second = sorted((find(one), find(other)), key=order.__getitem__)
        leader[second] = first

    read_by: dict[fx.Node, str] = {}
    for name, node in nodes.items():
        for other in _belongs_to(node, names):
            join(name, other)
        if op_name(node) == "linear":
            value = node.args[0]
            assert isinstance(value, fx.Node)
            join(read_by.setdefault(value, name), name)
    members: dict[str, list[str]] = {}
    for name in nodes:
        members.setdefault(find(name), []).append(name)
    groups = tuple(_group([nodes[name] for name in found], found) for found in members.values())
    owner = {name: group.name for group in groups for name in group.operators}
    edges = dict[tuple[str, str], Neighbors]()
    for name, node in nodes.items():
        for producer in _nearest(node, names):
            pair = owner[names[producer]], owner[name]
            if pair[0] != pair[1]:
                shapes = (op_name(producer), op_name(node), _shape(producer))
                edges.setdefault(pair, Neighbors(*pair, shapes))
    return Grouping(groups, tuple(edges.values()))


def _activations_read(node: fx.Node) -> list[fx.Node]:
    read = tensor_inputs(node)
    return [value for value in (read[:1] if op_name(node) in WEIGHTED else read) if value.op != "get_attr"]


def _belongs_to(node: fx.Node, names: dict[fx.Node, str]) -> list[str]:
    """Return the operators with which an operator shares its group, as far as it decides that itself."""
    kind = op_name(node)
    if kind in POOLS:
        readers = [user for user in _readers(node) if user in names]
        return [names[readers[0]]] if readers else [names[made] for made in _origins(node, names)[:1]]
    if kind == "add":
        made = [value for value in _origins(node, names) if op_name(value) in WEIGHTED]
        return [names[made[-1]]] if made else []
    if kind == "mul":
        gates = [value for value in _activations_read(node) if is_gate(value)]
        return [names[made] for gate in gates for made in _made_by(gate, names)]
    if kind == "conv2d" and is_gate(_activations_read(node)[0]):
        return [names[made] for made in _origins(node, names)]
    return []


def _readers(node: fx.Node) -> list[fx.Node]:
    """Return the readers of a value behind operators of one input that only reshape it."""
    found: list[fx.Node] = []
    for user in node.users:
        found += _readers(user) if op_name(user) in ("view", "flatten", "reshape", "contiguous") else [user]
    return found


def _made_by(value: fx.Node, names: dict[fx.Node, str]) -> list[fx.Node]:
    made = origin(value)
    return [made] if made in names else []


def _origins(node: fx.Node, names: dict[fx.Node, str]) -> list[fx.Node]:
    """Return the operators of `names` that computed what a node reads, all parts of a concatenation; in order."""
    found: list[fx.Node] = []
    for value in _activations_read(node):
        for part in _parts(value):
            found += _made_by(part, names)
    order = {other: index for index, other in enumerate(names)}
    return sorted(dict.fromkeys(found), key=order.__getitem__)


def _nearest(node: fx.Node, names: dict[fx.Node, str]) -> list[fx.Node]:
    """Return the operators of `names` before a node: those that computed what it reads, and behind what stays float
    (a softmax, a norm, a residual stream) the one that was executed last."""
    order = {other: index for index, other in enumerate(node.graph.nodes)}
    found = dict.fromkeys(_origins(node, names))
    for value in _activations_read(node):
        reached = _reached(value, names, order)
        if reached:
            found[max(reached, key=order.__getitem__)] = None
    return sorted(found, key=order.__getitem__)


def _reached(value: fx.Node, names: dict[fx.Node, str], order: dict[fx.Node, int]) -> list[fx.Node]:
    """Return the operators of `names` behind a value; of a sum that stays float only its later side that leads to one
    counts, as the other is the residual stream."""
    found: list[fx.Node] = []
    waiting, seen = [value], {value}
    while waiting:
        inner = waiting.pop()
        if inner in names:
            found.append(inner)
            continue
        new = [read for read in _activations_read(inner) if read not in seen and op_name(read) != "sym_size"]
        seen.update(new)
        if op_name(inner) == "add" and len(new) > 1:
            sides = (_reached(side, names, order) for side in sorted(new, key=order.__getitem__, reverse=True))
            found += next((side for side in sides if side), [])
        else:
            waiting += new
    return found


def _parts(value: fx.Node) -> list[fx.Node]:
    inner = value
    while op_name(inner) != "cat":
        read = _activations_read(inner)
        if len(read) != 1 or origin(inner) is inner:
            return [value]
        inner = read[0]
    return [part for read in _activations_read(inner) for part in _parts(read)]


def _shape(node: fx.Node) -> str:
    return "x".join("n" if not isinstance(dim, int) else str(dim) for dim in shape_of(node))


def _group(nodes: list[fx.Node], names: list[str]) -> OperatorGroup:
    shapes = []
    for node in nodes:
        read = ",".join(_shape(value) for value in tensor_inputs(node))
        plain = [str(argument) for argument in node.args[3:] if op_name(node).startswith("conv")]
        behind = ",".join(sorted(op_name(user) for user in node.users if op_name(user) != "sym_size"))
        shapes.append(f"{op_name(node)}({read}){''.join(plain)}->{_shape(node)}:{behind}")
    return OperatorGroup(names[0], tuple(names), "+".join(op_name(node) for node in nodes), tuple(shapes))
