"""The affine migration: fold a channel-wise shift and scale into a producer and out of all its consumers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx

from seatrial.core.channel_paths import Paths, channel_axis, channel_paths
from seatrial.core.constants import constant, parameter_at, set_constant
from seatrial.core.graph import module_path
from seatrial.core.recipe import Migrate
from seatrial.core.sites import Site, op_name
from seatrial.core.value_paths import ValuePath, value_paths
from seatrial.errors import BadInput

_LOOKS_AT_SHAPE = {"sym_size"}


def migrate(module: fx.GraphModule, named: Mapping[str, fx.Node], edit: Migrate, name: str) -> None:
    """Carry out one migration on a graph copy: X becomes (X - shift) / scale, and what reads it undoes that.

    Producers: convolution, linear, layer norm, batch norm, and a product with a parameter (RMS norm; scale only).
    Consumers: convolution and linear, directly or behind what `seatrial.core.channel_paths` follows (moves; for a scale
    alone also ReLU, pooling and gates), or behind an attention whose values X holds (`seatrial.core.value_paths`);
    one without a bias gets one where a shift needs it. Every other reader of X gets X * scale + shift. Computed in
    float64, stored in the type of the parameters. Raises BadInput for other operators, for scales that are not
    positive, for a shift into a convolution with zero padding, whose border would change, and for values that another
    operator reads too.
    """
    producer = named[edit.producer.operator]
    if not bool((edit.scale > 0).all() & edit.scale.isfinite().all() & edit.shift.isfinite().all()):
        raise BadInput(f"a migration at {edit.producer} with a scale <= 0", "positive scales", "clamp them")
    if edit.scale.ndim != 1 or edit.shift.shape != edit.scale.shape:
        shapes = f"scale {tuple(edit.scale.shape)} and shift {tuple(edit.shift.shape)}"
        raise BadInput(f"a migration at {edit.producer} with {shapes}", "one value per channel", "plan it again")
    if len(set(edit.consumers)) != len(edit.consumers):
        raise BadInput(f"a migration at {edit.producer} that names a consumer twice", "each once", "plan it again")
    shifted = bool(edit.shift.any())
    paths = channel_paths(producer, shifted=shifted)
    consumers = [named[site.operator] for site in edit.consumers]
    attended = value_paths(producer)
    if any(consumer in attended for consumer in consumers):
        _migrate_values(module, producer, consumers, edit, attended, name)
        return
    for consumer, site in zip(consumers, edit.consumers, strict=True):
        _check_consumer(producer, consumer, paths, site, shifted)
    _fold_into_producer(module, producer, edit, name)
    for i, (consumer, site) in enumerate(zip(consumers, edit.consumers, strict=True)):
        _fold_out_of_consumer(module, consumer, edit, site, f"{name}_{i}")
    rest = _uncovered(producer, paths.covered(consumers))
    if rest:
        _undo_for(module, producer, rest, edit, paths, name)


def _migrate_values(
    module: fx.GraphModule,
    producer: fx.Node,
    consumers: list[fx.Node],
    edit: Migrate,
    attended: Mapping[fx.Node, ValuePath],
    name: str,
) -> None:
    """Migrate channels of the values of an attention; several channels of a consumer may read the same one."""
    _fold_into_producer(module, producer, edit, name)
    changed = (edit.scale != 1) | (edit.shift != 0)
    others = changed.clone()
    for consumer, path in attended.items():
        at = torch.tensor(path.channels)
        if consumer not in consumers and bool(changed[at].any()):
            raise BadInput(f"values at {edit.producer} that another operator reads", "all readers", "name them all")
        others[at] = False
    if bool(others.any()) or any(consumer not in attended for consumer in consumers):
        came = f"a migration at {edit.producer} of more than the values of an attention"
        raise BadInput(came, "scale 1 and shift 0 for queries and keys", "plan it again")
    for i, (consumer, site) in enumerate(zip(consumers, edit.consumers, strict=True)):
        at = torch.tensor(attended[consumer].channels)
        if bool(edit.shift[at].any()) and not attended[consumer].may_shift:
            came = f"a shift into {site}, behind weights that need not sum to 1"
            raise BadInput(came, "shift 0 there", "migrate the scale alone")
        read = replace(edit, shift=edit.shift[at], scale=edit.scale[at])
        _fold_out_of_consumer(module, consumer, read, site, f"{name}_{i}")


def _check_consumer(producer: fx.Node, consumer: fx.Node, paths: Paths, site: Site, shifted: bool) -> None:
    if op_name(consumer) not in ("conv2d", "linear"):
        raise BadInput(f"consumer {site}", "a convolution or linear operator", "leave it out of the consumers")
    if shifted and op_name(consumer) == "conv2d" and pads(consumer):
        raise BadInput(f"a shift into {site}, which pads with zeros", "shift 0 there", "migrate the scale alone")
    if consumer in paths.consumers:
        return
    node = consumer.args[0]
    if node in paths.axes:
        came = f"{op_name(producer)} before {site}"
        raise BadInput(came, "the same channel axis on both sides", "drop this migration")
    while isinstance(node, fx.Node) and node.all_input_nodes:
        if any(read in paths.axes for read in node.all_input_nodes):
            raise BadInput(f"{op_name(node)} between a producer and {site}", "a direct edge", "drop this migration")
        node = node.args[0]
    raise BadInput(f"consumer {site}", "an operator that reads the producer", "name the right producer")


def pads(node: fx.Node) -> bool:
    """Tell whether a convolution pads with zeros."""
    padding = node.args[4] if len(node.args) > 4 else 0
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def _uncovered(producer: fx.Node, covered: set[fx.Node]) -> list[tuple[fx.Node, fx.Node]]:
    """Return (value, reader) edges on which the migrated tensor leaves the covered paths."""
    rest, waiting = [], [producer]
    while waiting:
        value = waiting.pop()
        for reader in value.users:
            if reader in covered:
                if op_name(reader) not in ("conv2d", "linear"):
                    waiting.append(reader)
            elif op_name(reader) not in _LOOKS_AT_SHAPE:
                rest.append((value, reader))
    return rest


def _fold_into_producer(module: fx.GraphModule, node: fx.Node, edit: Migrate, name: str) -> None:
    kind, scale, shift = op_name(node), edit.scale.double(), edit.shift.double()
    refused = BadInput(
        f"a migration from '{kind}' at {edit.producer} with {len(scale)} channels",
        "a convolution, linear, batch norm or layer norm, or an RMS norm without shift, of that many channels",
        "leave this place out",
    )
    if kind == "mul" and not bool(shift.any()):
        for index in (0, 1):
            gain = parameter_at(module, node, index)
            if gain is not None and gain.shape in ((), scale.shape):
                set_constant(module, node, index, _like(gain.double() / scale, gain), f"{name}_gain")
                return
    if kind not in ("conv2d", "linear", "layer_norm", "batch_norm"):
        raise refused
    at = 2 if kind == "layer_norm" else 1
    weight, bias = parameter_at(module, node, at), parameter_at(module, node, at + 1)
    if (weight is None or bias is None) and any(
        isinstance(value, fx.Node) for value in _unread(node, at, weight, bias)
    ):
        raise refused  # a weight that is computed, or rounded already
    sample = weight if weight is not None else torch.ones(_channels(node), dtype=node.meta["val"].dtype)
    if len(sample) != len(scale) or (kind == "layer_norm" and sample.ndim != 1):
        raise refused
    wide = scale.reshape(-1, *[1] * (sample.ndim - 1))
    set_constant(module, node, at, _like(sample.double() / wide, sample), f"{name}_weight")
    if bias is not None or bool(shift.any()):
        start = bias.double() if bias is not None else torch.zeros_like(scale)
        set_constant(module, node, at + 1, _like((start - shift) / scale, sample), f"{name}_bias")


def _unread(node: fx.Node, at: int, weight: Tensor | None, bias: Tensor | None) -> list[object]:
    """Return the weight and bias arguments that are not constants."""
    found = []
    for index, value in ((at, weight), (at + 1, bias)):
        if value is None and len(node.args) > index:
            found.append(node.args[index])
    return found


def _channels(node: fx.Node) -> int:
    return node.meta["val"].shape[channel_axis(node)]


def _like(value: Tensor, sample: Tensor) -> Tensor:
    return value.to(sample.dtype)


def _fold_out_of_consumer(module: fx.GraphModule, node: fx.Node, edit: Migrate, site: Site, name: str) -> None:
    weight, bias = parameter_at(module, node, 1), parameter_at(module, node, 2)
    if weight is None or any(isinstance(value, fx.Node) for value in _unread(node, 1, weight, bias)):
        raise BadInput(f"consumer {site} with a weight or bias that is computed", "parameters", "leave it out")
    scale, shift = edit.scale.double(), edit.shift.double()
    groups = node.args[6] if op_name(node) == "conv2d" and len(node.args) > 6 else 1
    groups = groups if isinstance(groups, int) else 1
    if groups * weight.shape[1] != len(scale):
        came = f"{len(scale)} scales for {groups * weight.shape[1]} channels of {site}"
        raise BadInput(came, "one value per channel", "plan the migration again")
    # Input channel j of group g is row j of that group's scales.
    wide = weight.double()
    by_group = _rows(scale, groups, weight)
    new = wide * by_group.reshape(*by_group.shape, *[1] * (weight.ndim - 2))
    set_constant(module, node, 1, _like(new, weight), f"{name}_weight")
    if bool(shift.any()):
        extra = (wide.reshape(*weight.shape[:2], -1).sum(2) * _rows(shift, groups, weight)).sum(1)
        moved = extra if bias is None else bias.double() + extra
        set_constant(module, node, 2, _like(moved, weight), f"{name}_bias")


def _rows(values: Tensor, groups: int, weight: Tensor) -> Tensor:
    """Return [out, in / groups]: for each weight, the value of the channel that it reads."""
    return values.reshape(groups, 1, -1).expand(groups, len(weight) // groups, -1).reshape(weight.shape[:2])


def _undo_for(
    module: fx.GraphModule,
    producer: fx.Node,
    rest: list[tuple[fx.Node, fx.Node]],
    edit: Migrate,
    paths: Paths,
    name: str,
) -> None:
    """Give readers that are not consumers X * scale + shift (a residual branch, for example)."""
    # A path of their own, so that the names of other operators do not move.
    path = f"{module_path(producer)}.{name}".removeprefix(".")
    for i, value in enumerate(dict.fromkeys(value for value, _ in rest)):
        held = value.meta["val"]
        restored, place = value, value.next
        for part, op in (("scale", torch.ops.aten.mul.Tensor), ("shift", torch.ops.aten.add.Tensor)):
            amount: Tensor = getattr(edit, part)
            if part == "shift" and not bool(amount.any()):
                continue
            shaped = amount.to(held.dtype).reshape([-1] + [1] * (held.ndim - 1 - paths.axes[value]))
            read = constant(module, f"{name}_undo{i}_{part}", shaped, place)
            with module.graph.inserting_before(place):
                restored = module.graph.call_function(op, (restored, read))
            restored.meta = {"val": held, "nn_module_stack": {name: (path, "Migrate")}}
        for reader in [reader for owner, reader in rest if owner is value]:
            reader.replace_input_with(value, restored)
