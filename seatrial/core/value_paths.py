"""Where the values of an attention go: from the projection that computes them to the one behind the attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from seatrial.core.channel_paths import RESHAPES, SAME
from seatrial.core.sites import op_name, shape_of

_MOVES = {*RESHAPES, "permute", "transpose", "select", "slice", "expand"}
_PARTS = {"unbind", "chunk", "split", "split_with_sizes", "getitem"}
_PRODUCTS = {"matmul", "bmm"}
_BLIND = {"sym_size", "_assert_tensor_metadata"}
"""They read a tensor, but not its values."""


@dataclass(frozen=True)
class ValuePath:
    """What reads the values of an attention behind it: for each channel that it reads, the producer's channel.

    `may_shift`: the weights with which the attention sums values up are a softmax in the values' own type, so each row
    of them sums up to 1 and passes a shift on as it is.
    """

    channels: tuple[int, ...]
    may_shift: bool


def value_paths(producer: fx.Node) -> dict[fx.Node, ValuePath]:
    """Return the linear operators that read the output of a linear `producer` through an attention, in order.

    A path leads through moves, one product with the values on its right, and moves. Heads that share values (grouped
    queries) and projections that compute queries and keys too are followed. Nothing is returned where another operator
    reads one of these channels, for it would see them changed. Sizes are those of the example at the capture.
    """
    if op_name(producer) != "linear" or not (shape := _sizes(producer)):
        return {}
    # Every element holds the number of the channel it comes from; moves then carry these numbers.
    held: dict[fx.Node, Any] = {producer: torch.arange(shape[-1]).expand(shape)}
    summed: dict[fx.Node, bool] = {producer: False}
    may_shift: dict[fx.Node, bool] = {producer: True}
    found: dict[fx.Node, ValuePath] = {}
    elsewhere: list[Tensor] = []
    for node, read in _readers(producer, held):
        kind = op_name(node)
        if kind in SAME | _MOVES | _PARTS:
            held[node] = held[read] if kind in SAME else _moved(node, held)
            summed[node], may_shift[node] = summed[read], may_shift[read]
        elif kind in _PRODUCTS and node.args[1] is read and not summed[read] and _alike(held[read], -2):
            held[node], summed[node] = held[read][..., :1, :].expand(_sizes(node)), True
            may_shift[node] = _sums_to_one(node.args[0], node)
        elif kind == "linear" and node.args[0] is read and summed[read] and _alike(held[read].flatten(0, -2), 0):
            found[node] = ValuePath(tuple(held[read].flatten(0, -2)[0].tolist()), may_shift[read])
        elif kind not in _BLIND:
            elsewhere += held[read] if isinstance(held[read], list | tuple) else [held[read]]
    if not found:
        return {}
    others = {channel for part in elsewhere for channel in part.unique().tolist()}
    return {} if any(others.intersection(path.channels) for path in found.values()) else found


def _readers(producer: fx.Node, held: Mapping[fx.Node, Any]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield every operator in order with each held value that it reads; more may be held meanwhile."""
    node = producer.next
    while node.op != "root":
        for read in node.all_input_nodes:
            if read in held:
                yield node, read
        node = node.next


def _moved(node: fx.Node, held: Mapping[fx.Node, Any]) -> Any:
    def value(read: fx.Node) -> Any:
        return held[read] if read in held else _size(read.meta["val"])

    args, kwargs = map_arg((node.args, node.kwargs), value)
    return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]


def _alike(channels: Tensor, dim: int) -> bool:
    """Tell whether there is the same channel all along a dimension."""
    return bool((channels == channels.narrow(dim, 0, 1)).all())


def _sums_to_one(weights: object, product: fx.Node) -> bool:
    """Tell whether the last axis of a value holds a softmax, computed in the type of the product."""
    while isinstance(weights, fx.Node) and op_name(weights) in SAME | RESHAPES | {"expand"}:
        read = weights.args[0]
        if not isinstance(read, fx.Node) or str(shape_of(read)[-1:]) != str(shape_of(weights)[-1:]):
            return False
        weights = read
    if not isinstance(weights, fx.Node) or op_name(weights) not in ("softmax", "_softmax"):
        return False
    last = weights.args[1] in (-1, len(shape_of(weights)) - 1)
    return last and weights.meta["val"].dtype == product.meta["val"].dtype


def _sizes(node: fx.Node) -> tuple[int, ...]:
    """Return the dimensions of a value as they were at the capture, () where they are not known."""
    found = [_size(size) for size in shape_of(node)]
    return tuple(found) if all(isinstance(size, int) for size in found) else ()


def _size(size: Any) -> Any:
    """Return the number that stood for a symbol at the capture."""
    return size if isinstance(size, int) else getattr(getattr(size, "node", None), "hint", None)
