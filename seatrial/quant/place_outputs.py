"""What a migration is judged by: the outputs of the part of a network that reads it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from seatrial.core.sites import op_name
from seatrial.numerics.walk import Segment
from seatrial.quant.operator_kinds import SOFTMAX, WEIGHTED, is_parameter


def judged_outputs(consumers: Sequence[fx.Node]) -> Segment:
    """Return the segment from the outputs of the consumers of a place to what judges them.

    Where an attention follows, that is its output before the projection, heads, mask and positions included; where
    several consumers meet in a product (a gated block), that product; else the outputs themselves.
    Source: Wei et al. 2023, eq. 9 and 10, and its code for gated blocks.
    """
    ends, inside = _ends(consumers)
    attention = any(op_name(node) in SOFTMAX for node in inside)
    targets = ends if attention or len(consumers) > 1 else list(consumers)
    return Segment(list(consumers), targets)


def layer_outputs(consumers: Sequence[fx.Node]) -> Segment:
    """Return the segment that ends at the outputs of the consumers: the sum of the losses of layers."""
    return Segment(list(consumers), list(consumers))


def _ends(consumers: Sequence[fx.Node]) -> tuple[list[fx.Node], set[fx.Node]]:
    """Return the values that the next weighted operators read, or that nothing reads on, and all on the way."""
    inside, ends = set(consumers), list[fx.Node]()
    waiting = list(consumers)
    while waiting:
        node = waiting.pop()
        for reader in node.users:
            weighted = op_name(reader) in WEIGHTED and len(reader.args) > 1 and is_parameter(reader.args[1])
            if weighted or reader.op == "output":
                if node not in ends:
                    ends.append(node)
            elif reader not in inside:
                inside.add(reader)
                waiting.append(reader)
    order = {node: index for index, node in enumerate(consumers[0].graph.nodes)}
    return sorted(ends, key=order.__getitem__), inside
