"""The simulation in whole numbers: products are taken on codes, as integer kernels take them, and then scaled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from seatrial.core.carrying import carries
from seatrial.core.constants import constant, parameter_at
from seatrial.core.graph import Graph, copied, finished
from seatrial.core.realise import tensor_inputs
from seatrial.core.sites import op_name

aten = torch.ops.aten
UNIT = 2.0**-15
"""What one code of a weight counts: a power of two changes no float32 result, and sums fit in float16 too, for the
noise that narrows products."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The constants of one round of a whole tensor: float32 `scale` and integer `zero`, codes from `low` to `high`."""

    scale: Tensor
    zero: int
    low: int
    high: int

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest value, float32."""
        return float(self.low - self.zero) * self.scale, float(self.high - self.zero) * self.scale


@dataclass(frozen=True, eq=False)
class Codes:
    """A node that gives whole numbers as float32, and the float32 scale (one, or one a channel) that makes values.

    Of a rounded tensor they are code minus zero point, `grid` its grid and `source` the value before the round; of a
    product they are the accumulators, like the weights in steps of `UNIT`. float32 holds integers up to 2^24: 500
    products of 8 by 8 bits at their largest.
    """

    node: fx.Node
    scale: Tensor
    grid: Grid | None = None
    source: fx.Node | None = None


class Arithmetic(ABC):
    """The order in which a runtime scales, adds and rounds around its integer products."""

    @abstractmethod
    def product(self, edit: Rewriting, node: fx.Node, x: Codes, weight: Codes) -> fx.Node:
        """Return the value of a convolution or linear operator whose inputs are codes; notes it in `edit.products`."""

    @abstractmethod
    def rounded(self, edit: Rewriting, node: fx.Node, grid: Grid) -> fx.Node:
        """Return code minus zero point for a round of a whole tensor."""


def in_integers(graph: Graph, arithmetic: Arithmetic) -> Graph:
    """Return a graph that takes every product of a rounded tensor with rounded weights on their codes.

    A float product of rounded values errs in its last bits, so that a value at the border of two codes falls on the
    other side now and then, and one flipped code moves hundreds in the layers behind it. Sums of codes are exact.
    Rounds of activations per channel, and what is not rounded, stay as they are; so do the gradients.

    Why, and what was measured: docs/decisions/0007-simulation-in-integers.md.
    """
    edit = Rewriting(graph)
    nodes = edit.graph.module.graph
    for node in edit.graph.nodes():
        if node.op == "call_function":
            with nodes.inserting_before(node):
                edit.visit(node, arithmetic)
    nodes.eliminate_dead_code()
    return finished(edit.graph)


class Rewriting:
    """A copy of a graph on its way to whole numbers: which nodes stand for codes, and how to add nodes."""

    def __init__(self, graph: Graph) -> None:
        self.graph = copied(graph)
        self.codes: dict[fx.Node, Codes] = {}
        """Rounded tensors and weights by the node of their value."""
        self.products: dict[fx.Node, Codes] = {}
        """Accumulators by the node of their value."""
        self._place = self.graph.nodes()[0]

    def visit(self, node: fx.Node, arithmetic: Arithmetic) -> None:
        """Rewrite one operator; the graph's insertion point stands before it."""
        self._place, kind = node, op_name(node)
        read = [self.codes.get(value) for value in tensor_inputs(node)]
        if kind == "qdq":
            self._round(node, arithmetic)
        elif kind in ("conv2d", "linear") and len(read) > 1 and read[0] and read[1] and read[0].scale.ndim == 0:
            value = arithmetic.product(self, node, read[0], read[1])
            node.replace_all_uses_with(value)
        elif read and all(held and held.grid for held in read):
            self._move(node, [held for held in read if held])

    def call(self, target: Any, *args: Any, like: fx.Node, **kwargs: Any) -> fx.Node:
        """Add an operator before the one that is being rewritten, with the shape and module of `like`."""
        added = self.graph.module.graph.call_function(target, args, kwargs)
        added.meta = {name: like.meta[name] for name in ("val", "nn_module_stack") if name in like.meta}
        return added

    def constant(self, value: Tensor, name: str) -> fx.Node:
        """Add a buffer before the operator that is being rewritten."""
        return constant(self.graph.module, name, value, self._place)

    def parameter(self, node: fx.Node, index: int) -> Tensor | None:
        """Return the constant that a node reads as its argument `index`."""
        return parameter_at(self.graph.module, node, index)

    def scaled(self, value: fx.Node, factor: Tensor) -> fx.Node:
        """Add a product with a constant."""
        return self.call(aten.mul.Tensor, value, self.constant(factor, "factor"), like=value)

    def fused(self, value: fx.Node, factor: Tensor, summand: Tensor | fx.Node) -> fx.Node:
        """Add value * factor + summand with one rounding, as a fused multiply-add gives it: computed in float64."""
        wide = self.scaled(self._cast(value, torch.float64), factor.double())
        if isinstance(summand, Tensor):
            total = self.call(aten.add.Tensor, wide, self.constant(summand.double(), "summand"), like=value)
        else:
            total = self.call(aten.add.Tensor, wide, self._cast(summand, torch.float64), like=value)
        return self._cast(total, torch.float32)

    def to_codes(self, ratio: fx.Node, grid: Grid, node: fx.Node, *, raised: bool = False) -> fx.Node:
        """Add the round of a value in steps of the grid, half to even, and give code minus zero point.

        A `raised` value holds the zero point already.
        """
        one, zero = self.constant(torch.ones(()), "one"), torch.tensor(0 if raised else grid.zero)
        ends = (grid.low, grid.high, -1)
        codes = self.call(torch.ops.seatrial.qdq.default, ratio, one, self.constant(zero, "zero"), *ends, like=node)
        return self.call(aten.sub.Tensor, codes, grid.zero, like=node) if raised and grid.zero else codes

    def _cast(self, value: fx.Node, kind: torch.dtype) -> fx.Node:
        return self.call(aten.to.dtype, value, kind, like=value)

    def _move(self, node: fx.Node, read: list[Codes]) -> None:
        """Let codes pass where values pass unchanged; parts of a concatenation need one grid."""
        first = read[0]
        if op_name(node) == "cat":
            same = all(torch.equal(held.scale, first.scale) for held in read)
            source: Any = [held.node for held in read]
        else:
            same, source = carries(node) and len(read) == 1, first.node
        if same:
            moved = self.call(node.target, source, *node.args[1:], like=node, **node.kwargs)
            self.codes[node] = Codes(moved, first.scale, first.grid)

    def _round(self, node: fx.Node, arithmetic: Arithmetic) -> None:
        weight, scale, zero = (self.parameter(node, index) for index in range(3))
        low, high, axis = node.args[3:6]
        assert scale is not None, "the grids of a captured graph are constants"
        assert zero is not None, "the grids of a captured graph are constants"
        assert isinstance(low, int)
        assert isinstance(high, int)
        if weight is not None:
            if not bool(zero.any()) and axis in (-1, 0):
                steps = scale if axis == -1 else scale.reshape(-1, *[1] * (weight.ndim - 1))
                codes = (weight.float() / steps.float()).round().clamp(low, high)
                self.codes[node] = Codes(self.constant(codes * UNIT, "codes"), scale.float() / UNIT)
        elif scale.numel() == 1:
            grid, source = Grid(scale.float().reshape(()), int(zero), low, high), node.args[0]
            assert isinstance(source, fx.Node)
            centered = arithmetic.rounded(self, node, grid)
            value = self.scaled(centered, grid.scale)
            self.codes[value] = Codes(centered, grid.scale, grid, source)
            node.replace_all_uses_with(value)


def by_channel(values: Tensor, node: fx.Node) -> Tensor:
    """Return one value a channel in the shape that broadcasts over the output of a convolution or linear operator."""
    return values.reshape(-1, 1, 1) if values.ndim == 1 and op_name(node) == "conv2d" else values


_LIMITED = {"relu": (0.0, float("inf")), "relu6": (0.0, 6.0)}


def limits(node: fx.Node) -> tuple[float, float] | None:
    """Return the lowest and highest value that an activation lets pass unchanged, None for other operators."""
    kind = op_name(node)
    if kind in ("hardtanh", "clamp"):
        given = [argument for argument in node.args[1:3] if isinstance(argument, int | float)]
        if len(given) == 2 or (kind == "hardtanh" and len(node.args) == 1):
            low, high = given or (-1.0, 1.0)
            return float(low), float(high)
    return _LIMITED.get(kind)
