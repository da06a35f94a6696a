"""Where the channels of a tensor go: operators that pass an affine change of each channel on unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import fx

from seatrial.core.sites import op_name, shape_of

_HOMOGENEOUS = {"relu", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "leaky_relu"}
"""f(x / s) = f(x) / s for a positive scale of each channel; they keep the channels where they are."""
SAME = {"contiguous", "clone", "alias", "detach", "to", "_to_copy"}
RESHAPES = {"reshape", "view", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"}
_CHANNELS_LAST = {"linear", "layer_norm", "mul"}
_READERS = {"linear", "conv2d"}


@dataclass(frozen=True)
class Paths:
    """The values that are the producer's, moved about, each with the axis of the channels, and who consumes them."""

    axes: Mapping[fx.Node, int]
    consumers: tuple[fx.Node, ...]
    """Linear operators and convolutions that sum over these channels."""

    def covered(self, consumers: Iterable[fx.Node]) -> set[fx.Node]:
        """Return these consumers and the values on the way to them, without the producer."""
        found: set[fx.Node] = set()
        for consumer in consumers:
            found.add(consumer)
            waiting = [consumer.args[0]]
            while waiting:
                value = waiting.pop()
                before = [read for read in value.all_input_nodes if read in self.axes]  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
                if before:
                    found.add(value)  # pyright: ignore[reportArgumentType]
                    waiting += before
        return found


def channel_paths(producer: fx.Node, *, shifted: bool) -> Paths:
    """Follow the output of `producer` through operators that commute with (x - shift) / scale of each channel.

    Without a shift, through ReLU, pooling and products with other tensors too (gates); with one, through moves,
    means and what pads nothing.
    """
    axes, consumers = {producer: channel_axis(producer)}, []
    node = producer.next
    while node.op != "root":
        carried = [read for read in node.all_input_nodes if read in axes]
        if len(carried) == 1:
            axis = axes[carried[0]]
            if op_name(node) in _READERS:
                if node.args[0] is carried[0] and channel_axis(node) == axis:
                    consumers.append(node)
            elif (moved := carried_axis(node, carried[0], axis, shifted)) is not None:
                axes[node] = moved
        node = node.next
    return Paths(axes, tuple(consumers))


def channel_axis(node: fx.Node) -> int:
    """Return the axis of the channels of a producer's output or a consumer's input, which have one rank."""
    return len(shape_of(node)) - 1 if op_name(node) in _CHANNELS_LAST else 1


def carried_axis(node: fx.Node, read: fx.Node, axis: int, shifted: bool) -> int | None:
    """Return the axis on which `node` carries the channels of `read` on, None where it does anything else to them."""
    kind, before, after = op_name(node), shape_of(read), shape_of(node)
    if len(before) == 0 or len(after) == 0:
        return None
    if kind in SAME:
        return axis
    if kind in _HOMOGENEOUS or kind == "mul":
        gated = kind != "mul" or (before == after and node.args[0] is not node.args[1])
        return axis if gated and not shifted else None
    if kind in RESHAPES:
        return _reshaped(before, after, axis)
    if kind in ("permute", "transpose"):
        return _order(node, len(before)).index(axis)
    if kind == "mean":
        return _reduced(node, len(before), axis)
    if kind in ("slice", "select"):
        along = _number(node.args[1]) % len(before)
        return None if along == axis else axis - int(kind == "select" and along < axis)
    if kind == "roll":
        along = {dim % len(before) for dim in _numbers(node.args[2])} if len(node.args) > 2 else {axis}
        return None if axis in along else axis
    if kind in ("pad", "constant_pad_nd"):
        return axis if _pads_around(node, len(before) - 1 - axis, shifted) else None
    return None


def _reshaped(before: tuple[object, ...], after: tuple[object, ...], axis: int) -> int | None:
    """Channels stay last where the last size stays, and behind the batch where all else is 1."""
    if axis == len(before) - 1 and isinstance(before[-1], int) and before[-1] == after[-1]:
        return len(after) - 1
    alone = all(size == 1 for size in before[axis + 1 :]) and all(size == 1 for size in after[2:])
    return 1 if axis == 1 and alone and len(after) > 1 and before[1] == after[1] else None


def _order(node: fx.Node, rank: int) -> list[int]:
    if op_name(node) == "permute":
        return [dim % rank for dim in _numbers(node.args[1])]
    order = list(range(rank))
    one, other = (_number(dim) % rank for dim in node.args[1:3])
    order[one], order[other] = order[other], order[one]
    return order


def _reduced(node: fx.Node, rank: int, axis: int) -> int | None:
    dims = {dim % rank for dim in _numbers(node.args[1])} if len(node.args) > 1 else {axis}
    if axis in dims:
        return None
    kept = len(node.args) > 2 and bool(node.args[2])
    return axis if kept else axis - sum(dim < axis for dim in dims)


def _pads_around(node: fx.Node, from_last: int, shifted: bool) -> bool:
    """Tell whether a pad leaves the channels alone and fills up with zeros (with nothing at all for a shift)."""
    amounts = _numbers(node.args[1])
    if shifted:
        return not any(amounts)
    filling = [value for value in node.args[2:] if isinstance(value, int | float)]
    constant = all(value in ("constant", None) or isinstance(value, int | float) for value in node.args[2:])
    return constant and not any(filling) and not any(amounts[2 * from_last : 2 * from_last + 2])


def _numbers(argument: object) -> list[int]:
    found = argument if isinstance(argument, list | tuple) else [argument]
    return [_number(value) for value in found]


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
