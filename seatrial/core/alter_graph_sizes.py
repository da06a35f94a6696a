"""Sizes in an altered graph: followed from node to node, so that the one that no longer fits can be named."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from seatrial.core.graph import Graph
from seatrial.core.sites import op_name, operators
from seatrial.errors import NotApplicable

_BATCH = 7
"""A prime, so that a constant size which takes samples for pixels does not divide by chance."""

_INTERPOLATIONS = ("nearest2d", "nearest_exact2d", "bilinear2d", "bicubic2d", "bilinear2d_aa", "bicubic2d_aa")
_UPSAMPLING = {prefix + kind for kind in _INTERPOLATIONS for prefix in ("upsample_", "_upsample_")}


def fitted(graph: Graph, before: Graph, why: str) -> None:
    """Let constant sizes of upsampling in `graph` follow the tensors that they are joined with; the rest must fit.

    graph: a copy that is being edited, in place; before: the graph it was copied from. Raises NotApplicable with
    `why` and the name of the first node that does not fit the new sizes.
    """
    old = _sizes(before).shapes
    # Each round mends one upsampling at least, or ends.
    while (sizes := _sizes(graph)).failed is not None:
        if not _follow(sizes.failed, sizes.shapes, old):
            raise NotApplicable(_misfit(graph, sizes.failed, sizes.shapes, old, why))
    changed = [node for node in graph.nodes() if sizes.shapes[node.name] != old[node.name]]
    ends = next(node for node in graph.nodes() if node.op == "output")
    if ends in changed:
        # A view can hide a wrong size in the batch; the output shows it.
        led = [node for node in changed if _leading(sizes.shapes[node.name]) != _leading(old[node.name])]
        raise NotApplicable(_misfit(graph, (led or [ends])[0], sizes.shapes, old, why))


@final
class _Sizes(fx.Interpreter):
    """Runs a graph on tensors without values and remembers each node's shape, and where it could not go on."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...] | None] = {}
        self.failed: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except Exception:
            self.failed = n
            raise
        self.shapes[n.name] = tuple(value.shape) if isinstance(value, Tensor) else None
        return value


def _sizes(graph: Graph) -> _Sizes:
    sizes, log = _Sizes(graph.module), logging.getLogger("torch._subclasses.fake_tensor")
    spoken = log.disabled
    log.disabled = True  # it prints a trace where a size does not fit, which is an answer here
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        try:
            sizes.run(*graph.example(batch=_BATCH))
        except Exception:  # an operator raises what it likes for sizes that do not fit
            if sizes.failed is None:
                raise
        finally:
            log.disabled = spoken
    return sizes


def _leading(shape: tuple[int, ...] | None) -> int | None:
    return shape[0] if shape else None


def _follow(node: fx.Node, now: dict[str, Any], old: dict[str, Any]) -> bool:
    """Give each upsampling of constant size that `node` joins the new size of what it is joined with."""
    joined = [other for other in node.all_input_nodes if old[other.name] and len(old[other.name]) == 4]
    enlarged = {other: _enlarging(other, old) for other in joined}
    moved = False
    for other, one in enlarged.items():
        for anchor in [rest for rest in joined if enlarged[rest] is None]:
            side, wanted = now[other.name][-2:], now[anchor.name][-2:]
            if one is not None and old[other.name][-2:] == old[anchor.name][-2:] and side != wanted:
                one.args = (one.args[0], list(wanted), *one.args[2:])
                moved = True
                break
    return moved


def _enlarging(node: fx.Node, old: dict[str, Any]) -> fx.Node | None:
    """Return the upsampling of constant size that gave a tensor its height and width, behind what keeps them."""
    while not (op_name(node) in _UPSAMPLING and _constant(node)):
        reads = [other for other in node.all_input_nodes if other.op != "get_attr"]
        if len(reads) != 1 or not old[reads[0].name] or old[reads[0].name][-2:] != old[node.name][-2:]:
            return None
        node = reads[0]
    return node


def _constant(node: fx.Node) -> bool:
    size = node.args[1] if len(node.args) > 1 else None
    return isinstance(size, Sequence) and all(isinstance(side, int) for side in size)


def _misfit(graph: Graph, node: fx.Node, now: dict[str, Any], old: dict[str, Any], why: str) -> str:
    names = {other: name for name, other in operators(graph).items()}
    if node.op == "output":
        return f"with {why} the output has the size {_shown(now[node.name])} instead of {_shown(old[node.name])}"
    reads = [
        f"{_shown(now[other.name])} instead of {_shown(old[other.name])}"
        for other in node.all_input_nodes
        if now[other.name] != old[other.name]
    ]
    return f"with {why} the constant size of '{names[node]}' no longer fits: it reads {' and '.join(reads)}"


def _shown(shape: tuple[int, ...] | None) -> str:
    """Return a size without the batch."""
    return "nothing" if not shape else "x".join(map(str, shape[1:])) or "one number"
