"""Bias correction: take back the mean error that rounding puts on each output channel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.predictor import Inputs
from seatrial.core.realise import realise
from seatrial.core.recipe import Affine, Grouped, Recipe, Replace, Round
from seatrial.core.sites import Site, attribute, op_name, operators, signature
from seatrial.numerics.in_step import peak_bytes, run_in_step
from seatrial.numerics.observe import watch

MEMORY_BYTES = 2 * 2**30


def correct_biases(
    graph: Graph, calibration: Sequence[Inputs], rounds: Sequence[Round], *, memory_bytes: int = MEMORY_BYTES
) -> list[Replace]:
    """Return new biases, one value for each output channel, of convolutions and linear operators with rounded weights.

    In order of execution, an operator's bias takes up the difference of its mean output (over samples and positions)
    between the float graph and the rounded one, in which all earlier operators are corrected already. So it covers the
    errors of weights and of activations, clipping included. Operators whose bias is not a constant are left alone.
    Where the activations of all batches exceed `memory_bytes`, the first batches that fit are used, at least one.

    Source: Nagel et al. 2019, section 4.2 and appendix D (empirical bias correction), here with all batches in step,
    so that one pass suffices.
    """
    named = operators(graph)
    corrected = {
        edit.site.operator: _Mean()
        for edit in rounds
        if edit.site.port == "weight"
        and isinstance(edit.grid, Affine | Grouped)
        and _correctable(named[edit.site.operator])
    }
    if not corrected:
        return []
    rounded = realise(graph, Recipe(tuple(rounds), signature(graph)))
    fitting = max(1, memory_bytes // max(1, peak_bytes(rounded, calibration[0])))
    batches = calibration[:fitting]
    watch(graph, batches, {named[name]: partial(mean.see, named[name]) for name, mean in corrected.items()})
    names = {node: name for name, node in operators(rounded).items() if name in corrected}
    shifts: dict[str, Tensor] = {}

    def correct(node: fx.Node, values: list[Any]) -> list[Any]:
        name = names.get(node)
        if name is None:
            return values
        found = _Mean()
        for value in values:
            found.see(node, value)
        shift = (corrected[name].value - found.value).to(values[0].dtype)
        shifts[name] = shift
        wide = shift.reshape(-1, 1, 1) if op_name(node) == "conv2d" else shift
        return [value + wide for value in values]

    run_in_step(rounded, batches, correct)
    edits = []
    for name, shift in shifts.items():
        node = named[name]
        bias = node.args[2] if len(node.args) > 2 else None
        old = attribute(graph.module, str(bias.target)) if isinstance(bias, fx.Node) else torch.zeros_like(shift)
        edits.append(Replace(Site.parse(f"{name}:bias"), (old + shift).detach().clone()))
    return edits


class _Mean:
    """The mean of an operator's output over samples and positions, one float64 value for each channel."""

    def __init__(self) -> None:
        self.total, self.count = torch.zeros(()), 0

    def see(self, node: fx.Node, value: Tensor) -> None:
        rows = value.detach().flatten(2).mean(2) if op_name(node) == "conv2d" else value.detach().flatten(0, -2)
        self.total = self.total + rows.sum(0, dtype=torch.float64)
        self.count += len(rows)

    @property
    def value(self) -> Tensor:
        return self.total / self.count


def _correctable(node: fx.Node) -> bool:
    bias = node.args[2] if len(node.args) > 2 else None
    constant = bias is None or (isinstance(bias, fx.Node) and bias.op == "get_attr")
    return constant and op_name(node) in ("conv2d", "linear")
