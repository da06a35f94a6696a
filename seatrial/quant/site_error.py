"""How much each rounded site loses, and which site is to blame for a drop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from seatrial.core.further_rounds import ROUNDS
from seatrial.core.graph import Graph
from seatrial.core.grids import FloatType, Grid
from seatrial.core.predictor import Inputs
from seatrial.core.realise import realise
from seatrial.core.recipe import Recipe
from seatrial.core.sites import Site, op_name
from seatrial.numerics.observe import tensors_of


@dataclass(frozen=True)
class SiteError:
    """Signal-to-quantization-noise ratio of one rounded site, in decibels, on unrounded values."""

    site: Site
    bits: int
    sqnr_db: float | None
    """None where the rounding loses nothing."""


def site_errors(graph: Graph, recipe: Recipe, batches: Sequence[Inputs]) -> list[SiteError]:
    """Return 10 log10(sum x^2 / sum (round(x) - x)^2) for each round of a recipe, in its order.

    Each site is judged alone: x is the value after all edits of the recipe but its rounds, so errors that arrive from
    earlier sites are not counted.
    """
    runner = _Unrounded(realise(graph, recipe))
    with torch.no_grad():
        for batch in batches:
            runner.run(*tensors_of(graph, batch))
    sums = {site: runner.sums.get(site, (0.0, 0.0)) for site in (str(edit.site) for edit in recipe.rounds)}
    return [SiteError(edit.site, _bits(edit.grid), ratio_db(*sums[str(edit.site)])) for edit in recipe.rounds]


def blame(graph: Graph, recipe: Recipe, batch: Inputs, *, suspects: int = 8) -> list[tuple[Site, float]]:
    """Return the sites whose rounding alone moves the output most: (site, relative output error), worst first.

    Only the `suspects` sites with the lowest ratio are tried, one forward pass each; the error is against the output
    after all edits of the recipe but its rounds.
    """
    errors = [error for error in site_errors(graph, recipe, [batch]) if error.sqnr_db is not None]
    worst = sorted(errors, key=lambda error: error.sqnr_db or 0.0)[:suspects]
    rounded, tensors = realise(graph, recipe), tensors_of(graph, batch)
    with torch.no_grad():
        whole = _Unrounded(rounded).run(*tensors)
        found = []
        for error in worst:
            alone = _Unrounded(rounded, only=str(error.site)).run(*tensors)
            found.append((error.site, float((alone - whole).norm() / whole.norm())))
    return sorted(found, key=lambda pair: -pair[1])


class _Unrounded(fx.Interpreter):
    """Runs a realised graph with its rounds passed by, except the one at `only`, and sums up what each would lose."""

    def __init__(self, graph: Graph, only: str | None = None) -> None:
        super().__init__(graph.module, garbage_collect_values=True)
        self.only, self.sums = only, dict[str, tuple[float, float]]()

    def run_node(self, n: fx.Node) -> Any:
        if op_name(n) not in ROUNDS or "site" not in n.meta:
            return super().run_node(n)
        site = str(n.meta["site"])
        value: Tensor = self.env[n.args[0]]  # pyright: ignore[reportArgumentType]
        if self.only is not None:
            return super().run_node(n) if site == self.only else value
        # A weight is the same in every batch.
        if site not in self.sums or n.args[0].op != "get_attr":  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
            self._add(site, value, super().run_node(n))
        return value

    def _add(self, site: str, value: Tensor, near: Tensor) -> None:
        signal, noise = self.sums.get(site, (0.0, 0.0))
        signal += float(value.double().square().sum())
        self.sums[site] = signal, noise + float((near.double() - value.double()).square().sum())


def _bits(grid: Grid) -> int:
    return 16 if isinstance(grid, FloatType) else grid.bits


def ratio_db(signal: float, noise: float) -> float | None:
    """Return signal over noise, two sums of squares, in decibels; None without noise."""
    if noise == 0:
        return None
    return 10 * math.log10(max(signal, 1e-300) / noise)
