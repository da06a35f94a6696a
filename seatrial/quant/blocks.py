"""The blocks of a network, by its residual connections: an attention, a feed-forward part, and what lies between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import fx

from seatrial.core.carrying import CARRIES
from seatrial.core.graph import Graph
from seatrial.core.sites import op_name, operators, shape_of
from seatrial.quant.operator_kinds import PRODUCTS, WEIGHTED, activations_read


@final
@dataclass(frozen=True)
class Block:
    """Operators by name, in order of execution; the last one gives the block's output."""

    operators: tuple[str, ...]

    @property
    def output(self) -> str:
        """The operator whose result leaves the block."""
        return self.operators[-1]


def blocks_of(graph: Graph, rounded: Mapping[str, object]) -> list[Block]:
    """Return the blocks that hold the operators in `rounded` (by name), each once, by where they end.

    A block is what lies between a value and its sum with what was made of it by products and weights, where no other
    such sum lies inside: the attention and the feed-forward part of a transformer's layer, the branch of a residual
    network. Every other operator is a block by itself: patch embedding, merging of patches, head.

    Source: Li et al. 2021 (BRECQ), section 3.2, for residual blocks; Ding et al. 2022 (APQ-ViT), section 3.2.
    """
    named = operators(graph)
    names = {node: name for name, node in named.items()}
    order = {node: index for index, node in enumerate(named.values())}
    before = _ancestors(graph, order)
    residual = _residual(list(named.values()), order, before)
    with_work = [nodes for nodes in residual if any(op_name(node) in WEIGHTED | PRODUCTS for node in nodes)]
    insides = [set(nodes) for nodes in with_work]
    found: list[Block] = []
    taken: set[fx.Node] = set()
    for nodes, inside in zip(with_work, insides, strict=True):
        holds_another = any(other < inside for other in insides)
        if holds_another or inside & taken or not any(names[node] in rounded for node in nodes):
            continue
        taken |= inside
        found.append(Block(tuple(names[node] for node in nodes)))
    alone = [Block((name,)) for name in rounded if named[name] not in taken]
    return sorted([*found, *alone], key=lambda block: order[named[block.output]])


def _ancestors(graph: Graph, order: Mapping[fx.Node, int]) -> dict[fx.Node, int]:
    """Return the operators that each value depends on, itself included, as bits of a number."""
    before: dict[fx.Node, int] = {}
    for node in graph.nodes():
        own = 1 << order[node] if node in order else 0
        for read in node.all_input_nodes:
            own |= before[read]
        before[node] = own
    return before


def _residual(
    every: Sequence[fx.Node], order: Mapping[fx.Node, int], before: Mapping[fx.Node, int]
) -> Iterator[list[fx.Node]]:
    """Yield the operators between each value and its sum with what was made of it, that sum last."""
    for node in every:
        if op_name(node) != "add":
            continue
        operands = [read for read in activations_read(node) if before[read]]
        if len(operands) != 2 or str(shape_of(operands[0])) != str(shape_of(operands[1])):
            continue
        entry = _entry(operands, every, order, before)
        if entry is not None:
            since = 1 << order[entry]
            ending = before[node]
            yield [
                other for other in every if other is not entry and ending >> order[other] & 1 and before[other] & since
            ]


def _entry(
    operands: Sequence[fx.Node], every: Sequence[fx.Node], order: Mapping[fx.Node, int], before: Mapping[fx.Node, int]
) -> fx.Node | None:
    """Return the value that both operands were made of: one of them but for moves, else their last common ancestor."""
    for skipped, made in (operands, operands[::-1]):
        value = skipped
        while True:
            if before[made] >> order[value] & 1:
                return value
            read = activations_read(value)
            if op_name(value) not in CARRIES or len(read) != 1:
                break
            value = read[0]
    common = before[operands[0]] & before[operands[1]]
    entry = every[common.bit_length() - 1] if common else None
    value = None if entry is None else entry.meta.get("val")
    # Token ids and their mask are no values that a block could read.
    return entry if getattr(getattr(value, "dtype", None), "is_floating_point", False) else None
