"""Alter operators of a captured graph as another runtime would have them: pools, upsampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from seatrial.core.alter_graph_sizes import fitted
from seatrial.core.graph import Graph, copied, finished, from_program, to_program
from seatrial.core.recipe import Edit, Migrate, Recipe
from seatrial.core.sites import Site, op_name, operators, signature, site_of
from seatrial.errors import BadInput, NoNoise, NotApplicable, unknown_name

GRAPH_EDITS = ("ceil_mode", "floor_mode", "upsample:nearest", "upsample:bilinear", "align_corners")
"""What `System.graph` may hold."""

POOLS = ("max_pool2d", "max_pool2d_with_indices", "avg_pool2d")
NEAREST = ("upsample_nearest2d", "_upsample_nearest_exact2d")
BILINEAR = ("upsample_bilinear2d", "_upsample_bilinear2d_aa")
BICUBIC = ("upsample_bicubic2d", "_upsample_bicubic2d_aa")


def with_edit(edits: tuple[str, ...], edit: str) -> tuple[str, ...]:
    """Return the edits of a system with one more, which takes the place of one that says otherwise.

    Raises NoNoise where it is among them already.
    """
    if edit in edits:
        raise NoNoise(f"the graph is altered by {edit} already")
    return (*(kept for kept in edits if _subject(kept) != _subject(edit)), edit)


def _subject(edit: str) -> str:
    return "pool" if edit in ("ceil_mode", "floor_mode") else edit.partition(":")[0]


def pool_size(size: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil: bool) -> int:
    """Return how many windows a pool has along one side of `size` pixels.

    Source: SysNoise (Wang et al. 2023), appendix A: floor or ceil of (size - kernel + 2 padding) / stride + 1. As
    PyTorch has it, a window that would begin behind the picture and its first padding is left out.
    """
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-span // stride) if ceil else span // stride) + 1
    return count - 1 if ceil and (count - 1) * stride >= size + padding else count


def altered(graph: Graph, edits: tuple[str, ...]) -> Graph:
    """Return the graph with the edits of `GRAPH_EDITS`, in order, captured again so that shapes are inferred anew.

    `ceil_mode` rounds the sizes of max and average pools up, `floor_mode` down; `upsample:bilinear` takes the place
    of nearest neighbours, plain or exact, `upsample:nearest` that of bilinear; `align_corners` flips that flag of
    bilinear and bicubic upsampling. An upsampling whose constant size was that of the tensor it is joined with
    follows that tensor. Raises NotApplicable, naming the node, where a constant size no longer fits, and where the
    graph has no such operators; NoNoise where no edit changes anything.

    Source: SysNoise (Wang et al. 2023), table 1. Departures: floor and nearest are there for networks trained with
    the other choice; align_corners is not in the paper; pools of one and three dimensions stay as they are.
    """
    new, nothing = copied(graph), []
    for edit in edits:
        if edit not in GRAPH_EDITS:
            raise unknown_name("edit of a graph", edit, GRAPH_EDITS)
        name, _, option = edit.partition(":")
        try:
            _EDITS[name](new, option)
        except NoNoise as reason:
            nothing.append(str(reason))
    if len(nothing) == len(edits):
        raise NoNoise("; ".join(nothing) or "no edit of the graph")
    fitted(new, graph, " and ".join(edits))
    again = from_program(to_program(finished(new)), names=[spec.name for spec in graph.inputs])
    if [spec.shape for spec in again.inputs] != [spec.shape for spec in graph.inputs]:
        raise NotApplicable(f"with {' and '.join(edits)} the graph takes {again.inputs} instead of {graph.inputs}")
    return again


def carried(recipe: Recipe, before: Graph, after: Graph) -> Recipe:
    """Return a recipe that was planned on `before` for `after`, which `altered` made of it: same grids, same places.

    Raises BadInput where it was planned on another graph, and NotApplicable where operators came or went.
    """
    if recipe.signature != signature(before):
        raise BadInput("a recipe for another graph", "one planned on the unaltered graph", "re-plan")
    old, new = list(operators(before)), list(operators(after))
    if len(old) != len(new):
        raise NotApplicable(
            f"the altered graph has {len(new)} operators instead of {len(old)}: its recipe has no place"
        )
    for one, other in zip(old, new, strict=True):
        # Upsampling alone changes its name, at its place.
        if one != other and not all(_kind(name) in (*NEAREST, *BILINEAR, *BICUBIC) for name in (one, other)):
            raise NotApplicable(f"'{other}' stands in the altered graph where '{one}' stood: its recipe has no place")
    named = dict(zip(old, new, strict=True))

    def moved(site: Site) -> Site:
        return site_of(named[site.operator], site.port)

    def placed(edit: Edit) -> Edit:
        if isinstance(edit, Migrate):
            return replace(edit, producer=moved(edit.producer), consumers=tuple(map(moved, edit.consumers)))
        return replace(edit, site=moved(edit.site))

    return replace(recipe, edits=tuple(map(placed, recipe.edits)), signature=signature(after))


def _kind(operator: str) -> str:
    return operator.rpartition("/")[2].partition("#")[0]


def _found(graph: Graph, kinds: tuple[str, ...]) -> list[fx.Node]:
    return [node for node in graph.nodes() if op_name(node) in kinds]


def _argument(node: fx.Node, name: str) -> Any:
    """Return what a node passes as its operator's argument `name`, the default where it passes nothing."""
    for i, wanted in enumerate(_arguments(node)):
        if wanted.name == name:
            return node.args[i] if i < len(node.args) else node.kwargs.get(name, wanted.default_value)
    raise KeyError(f"{node.target} has no argument {name}")


def _arguments(node: fx.Node) -> list[Any]:
    schema = getattr(node.target, "_schema", None)
    assert schema is not None, "an operator of ATen"
    return schema.arguments


def _set_arguments(node: fx.Node, target: Any = None, **values: Any) -> None:
    """Give a node another operator and other arguments; arguments that both operators have stay."""
    kept = {wanted.name: _argument(node, wanted.name) for wanted in _arguments(node)}
    if target is not None:
        node.target = target
    node.args = tuple(
        values[wanted.name] if wanted.name in values else kept[wanted.name] for wanted in _arguments(node)
    )
    node.kwargs = {}


def _pair(value: Any) -> tuple[int, int]:
    parts = [value] if isinstance(value, int) else list(value)
    return parts[0], parts[-1]


def _pools(graph: Graph, *, ceil: bool) -> None:
    pools = _found(graph, POOLS)
    if not pools:
        raise NotApplicable("the graph has no max or average pooling whose size could be rounded otherwise")
    names = {node: name for name, node in operators(graph).items()}
    way, seen, changes = "up" if ceil else "down", [], False
    for node in pools:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        sides = source.meta["val"].shape[-2:]
        kernel = _pair(_argument(node, "kernel_size"))
        stride = _pair(_argument(node, "stride") or kernel)
        padding = _pair(_argument(node, "padding"))
        dilation = _pair(_argument(node, "dilation")) if op_name(node) != "avg_pool2d" else (1, 1)
        if not all(isinstance(side, int) for side in sides):
            raise NotApplicable(f"the size of '{names[node]}' is not fixed")
        now = [
            tuple(
                pool_size(int(side), *window, ceil=rounding)
                for side, *window in zip(sides, kernel, stride, padding, dilation, strict=True)
            )
            for rounding in (bool(_argument(node, "ceil_mode")), ceil)
        ]
        changes |= now[0] != now[1]
        seen.append(f"{'x'.join(map(str, sides))} to {'x'.join(map(str, now[0]))}")
        _set_arguments(node, ceil_mode=ceil)
    if not changes:
        # The first pool reads what it read before, so it has the size that it had, and so has every later one.
        raise NoNoise(f"every pool has the same size rounded {way} at this input: {', '.join(dict.fromkeys(seen))}")


def _upsample(graph: Graph, kind: str) -> None:
    others, same = (NEAREST, BILINEAR) if kind == "bilinear" else (BILINEAR, NEAREST)
    found = _found(graph, others)
    if not found:
        if _found(graph, same):
            raise NoNoise(f"every upsampling is {kind} already")
        raise NotApplicable("the graph has no upsampling by nearest neighbours or bilinear interpolation")
    packet = getattr(torch.ops.aten, f"upsample_{kind}2d")
    for node in found:
        new = {"align_corners": False} if kind == "bilinear" else {}
        assert isinstance(node.target, OpOverload)
        _set_arguments(node, getattr(packet, node.target._overloadname), **new)


def _align_corners(graph: Graph) -> None:
    found = _found(graph, (*BILINEAR, *BICUBIC))
    if not found:
        raise NotApplicable("the graph has no bilinear or bicubic upsampling whose corners could be aligned")
    for node in found:
        _set_arguments(node, align_corners=not _argument(node, "align_corners"))


_EDITS: dict[str, Callable[[Graph, str], None]] = {
    "ceil_mode": lambda graph, _: _pools(graph, ceil=True),
    "floor_mode": lambda graph, _: _pools(graph, ceil=False),
    "upsample": _upsample,
    "align_corners": lambda graph, _: _align_corners(graph),
}
