"""Where an affine migration may stand: a norm or a gated projection, and the linear operators that read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, fx

from seatrial.core.channel_paths import channel_axis, channel_paths
from seatrial.core.graph import Graph
from seatrial.core.migrate import pads
from seatrial.core.recipe import Migrate
from seatrial.core.sites import op_name, operators, shape_of, site_of
from seatrial.core.value_paths import value_paths
from seatrial.quant.operator_kinds import is_parameter

Kind = Literal["norm", "gated", "values"]
_UP_TO_RSQRT = 4
"""Operators between the product with the gain of an RMS norm and its root."""
_STEPS = {"relu", "leaky_relu", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}


@dataclass(frozen=True)
class Place:
    """A producer and the operators that take a migration of its output back, by name in order of execution.

    `may_shift`: a shift can be folded into the producer and out of every consumer. All other readers of the output,
    a residual branch for example, get the inverse affine. `channels`: for each channel that the consumers read, the
    producer's, of `width`; None where they are the same.
    """

    producer: str
    consumers: tuple[str, ...]
    may_shift: bool
    kind: Kind
    channels: tuple[int, ...] | None = None
    width: int = 0

    def highest(self, values: Float[Tensor, " read"]) -> Float[Tensor, " read"]:
        """Return for each channel that the consumers read the highest value of all that read the same one."""
        if self.channels is None:
            return values
        at = torch.tensor(self.channels)
        return values.new_zeros(self.width).scatter_reduce(0, at, values, "amax", include_self=False)[at]

    def migration(self, shift: Float[Tensor, " read"], scale: Float[Tensor, " read"]) -> Migrate:
        """Return the edit for a shift and a scale of each channel that the consumers read."""
        if self.channels is not None:
            at = torch.tensor(self.channels)
            shift = shift.new_zeros(self.width).index_copy(0, at, shift)
            scale = scale.new_ones(self.width).index_copy(0, at, scale)
        consumers = tuple(site_of(name, "output") for name in self.consumers)
        return Migrate(site_of(self.producer, "output"), consumers, shift, scale)


def migration_places(graph: Graph, *, gated: bool = True, values: bool = False) -> list[Place]:
    """Return every place of a graph, in order of execution; each operator consumes at one place at most.

    Norms are layer norms and products with a gain behind a reciprocal root (RMS norm); their consumers are all
    linear operators and convolutions with constant weights that read them, behind moves and means too. With `gated`,
    the up projection of a gated block is a producer for the down projection (scale only). With `values`, the projection
    that computes the values of an attention is one for the projection behind it, see `seatrial.core.value_paths`.
    Source: Wei et al. 2023, section 4.2 and appendix C, found in the graph and not by the names of classes.
    """
    named = operators(graph)
    names = {node: name for name, node in named.items()}
    places: list[Place] = []
    for name, node in named.items():
        if values and (found := _values(name, node, names)):
            places.append(found)
        kind = _kind(node)
        if kind is None or (kind == "gated" and not gated):
            continue
        consumers = _consumers(node, kind)
        if not consumers:
            continue
        shifted = _consumers(node, kind, shifted=True) if op_name(node) == "layer_norm" else []
        may_shift = set(shifted) == set(consumers) and not any(
            op_name(one) == "conv2d" and pads(one) for one in shifted
        )
        places.append(Place(name, tuple(names[one] for one in consumers), may_shift, kind))
    return places


def _kind(node: fx.Node) -> Kind | None:
    if op_name(node) == "layer_norm":
        normalized = node.args[1]
        affine = all(argument is None or is_parameter(argument) for argument in node.args[2:4])
        return "norm" if isinstance(normalized, list | tuple) and len(normalized) == 1 and affine else None
    if op_name(node) == "mul" and _is_rms_norm(node):
        return "norm"
    if op_name(node) == "linear" and _has_constants(node):
        return "gated" if any(op_name(user) == "mul" for user in node.users) else None
    return None


def _values(name: str, producer: fx.Node, names: Mapping[fx.Node, str]) -> Place | None:
    """Return the place between the values of an attention and what reads them behind it, None where there is none."""
    paths = value_paths(producer)
    constant = all(_has_constants(node) for node in (producer, *paths))
    if not paths or not constant or len(set(paths.values())) > 1:
        return None
    (path,) = set(paths.values())
    consumers = tuple(names[one] for one in paths)
    return Place(name, consumers, path.may_shift, "values", path.channels, shape_of(producer)[-1])


def _has_constants(node: fx.Node) -> bool:
    """Tell whether weight and bias are constants of the graph."""
    return all(argument is None or is_parameter(argument) for argument in node.args[1:3])


def _is_rms_norm(node: fx.Node) -> bool:
    gains = [value for value in node.all_input_nodes if is_parameter(value) and len(shape_of(value)) == 1]
    rest = [value for value in node.all_input_nodes if value not in gains]
    if len(gains) != 1 or len(rest) != 1 or len(shape_of(node)) < 2 or shape_of(node)[-1] != shape_of(gains[0])[0]:
        return False
    value: fx.Node | None = rest[0]
    for _ in range(_UP_TO_RSQRT):
        if value is None:
            return False
        if any(op_name(read) == "rsqrt" for read in [value, *value.all_input_nodes]):
            return True
        value = value.all_input_nodes[0] if value.all_input_nodes else None
    return False


def _consumers(producer: fx.Node, kind: Kind, *, shifted: bool = False) -> list[fx.Node]:
    """Return who takes a migration back: behind moves for a norm, behind one product for a gated projection."""
    paths = channel_paths(producer, shifted=shifted)
    found = []
    for consumer in paths.consumers:
        steps = [op_name(node) for node in paths.covered([consumer]) if node is not consumer]
        products = steps.count("mul")
        if not _has_constants(consumer):
            continue
        if any(step in _STEPS for step in steps) or products != (1 if kind == "gated" else 0):
            continue
        if kind == "norm" or channel_axis(consumer) == len(shape_of(producer)) - 1:
            found.append(consumer)
    return found
