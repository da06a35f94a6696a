"""How much each rounded site disturbs what reads it: an error that a migration does not measure anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from seatrial.core.further_rounds import ROUNDS
from seatrial.core.graph import Graph
from seatrial.core.predictor import Inputs
from seatrial.core.realise import realise
from seatrial.core.recipe import Recipe
from seatrial.core.sites import op_name
from seatrial.numerics.observe import tensors_of
from seatrial.quant.operator_kinds import moves
from seatrial.quant.site_error import ratio_db

_PASSES = {
    *("view_as", "expand_as", "unflatten", "to", "_to_copy", "narrow", "index_select", "split_with_sizes"),
    *("movedim", "t", "cat", "stack", "mean"),
}
"""Operators that give values on, beside those of `moves`; a mean over tokens is followed by what is migrated too."""
_BLOCKED = 1e30
"""Attention scores beyond this are those that a mask took out."""
_PIECE = 2**22


def reader_errors(graph: Graph, recipe: Recipe, batches: Sequence[Inputs]) -> dict[str, float | None]:
    """Return 10 log10(sum y^2 / sum (y' - y)^2) by site: y is what its readers compute, y' with this round alone.

    Readers are the next operators that do arithmetic, behind those that move or average values; y and y' come after all
    edits of the recipe but its rounds. A linear operator computes the same before and after a migration of its input,
    so that recipes with and without migrations can be compared. The tensor's own ratio (`site_errors`) does not allow
    that: its signal is mostly that of the outliers. None where nothing is disturbed, or nothing reads the site.
    """
    runner = _Readers(realise(graph, recipe))
    with torch.no_grad():
        for batch in batches:
            runner.run(*tensors_of(graph, batch))
    return {str(edit.site): ratio_db(*runner.sums.get(str(edit.site), (0.0, 0.0))) for edit in recipe.rounds}


class _Readers(fx.Interpreter):
    """Runs a realised graph with its rounds passed by, and each reader of a round once more with that round."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module, garbage_collect_values=True)
        self.sums: dict[str, tuple[float, float]] = {}
        self._rounded: dict[fx.Node, dict[str, Any]] = {}
        """By site, what a value would be if that site were rounded."""

    def run_node(self, n: fx.Node) -> Any:
        if op_name(n) in ROUNDS and "site" in n.meta:
            source = n.args[0]
            assert isinstance(source, fx.Node), "a round reads a tensor"
            value = self.env[source]
            self._rounded[n] = {**self._rounded.get(source, {}), str(n.meta["site"]): super().run_node(n)}
        else:
            value = super().run_node(n)
            self._read(n, value)
        for done in self.user_to_last_uses.get(n, ()):
            self._rounded.pop(done, None)
        return value

    def _read(self, node: fx.Node, value: Any) -> None:
        read = [source for source in node.all_input_nodes if source in self._rounded]
        if node.op != "call_function" or isinstance(value, int | float):
            return
        for site in dict.fromkeys(site for source in read for site in self._rounded[source]):
            whole = {source: self.env[source] for source in read if site in self._rounded[source]}
            self.env.update({source: self._rounded[source][site] for source in whole})
            near = super().run_node(node)
            self.env.update(whole)
            if moves(node) or op_name(node) in _PASSES or not isinstance(value, Tensor):
                self._rounded.setdefault(node, {})[site] = near
            elif value.is_floating_point():
                self._add(site, value, near)

    def _add(self, site: str, value: Tensor, near: Tensor) -> None:
        signal, noise = self.sums.get(site, (0.0, 0.0))
        # In pieces, as a batch of logits in float64 may not fit beside what is held already.
        for piece, other in zip(value.reshape(-1).split(_PIECE), near.reshape(-1).split(_PIECE), strict=True):
            kept = piece.abs() < _BLOCKED
            whole = piece[kept].double()
            signal += float(whole.square().sum())
            noise += float((other[kept].double() - whole).square().sum())
        self.sums[site] = signal, noise
