"""How much each rounded site loses, and which site is to blame for a drop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seatrial.core.graph import Graph, GraphPredictor
from seatrial.core.predictor import Inputs
from seatrial.core.realise import realise, source
from seatrial.core.recipe import Affine, Grid, Recipe
from seatrial.core.sites import Site, attribute, operators
from seatrial.numerics.observe import watch
from seatrial.numerics.ranges import fake


@dataclass(frozen=True)
class SiteError:
    """Signal-to-quantization-noise ratio of one rounded site, in decibels, on the float graph's own values."""

    site: Site
    bits: int
    sqnr_db: float | None
    """None where the rounding loses nothing."""


def site_errors(graph: Graph, recipe: Recipe, batches: Sequence[Inputs]) -> list[SiteError]:
    """Return 10 log10(sum x^2 / sum (round(x) - x)^2) for each round of a recipe, in its order.

    Each site is judged alone: errors that arrive from earlier sites are not counted.
    """
    named = operators(graph)
    sums = {edit.site: [0.0, 0.0] for edit in recipe.rounds}
    seen: dict[torch.fx.Node, list[Callable[[Tensor], None]]] = {}
    for edit in recipe.rounds:
        value = source(named[edit.site.operator], edit.site.port)
        if value.op == "get_attr":
            _add(sums[edit.site], attribute(graph.module, str(value.target)), edit.grid)
        else:
            seen.setdefault(value, []).append(lambda x, e=edit: _add(sums[e.site], x, e.grid))
    watch(graph, batches, {node: _all(adders) for node, adders in seen.items()})
    return [SiteError(edit.site, _bits(edit.grid), _ratio_db(*sums[edit.site])) for edit in recipe.rounds]


def blame(graph: Graph, recipe: Recipe, batch: Inputs, *, suspects: int = 8) -> list[tuple[Site, float]]:
    """Return the sites whose rounding alone moves the output most: (site, relative output error), worst first.

    Only the `suspects` sites with the lowest ratio are tried, one forward pass each.
    """
    errors = [e for e in site_errors(graph, recipe, [batch]) if e.sqnr_db is not None]
    worst = sorted(errors, key=lambda e: e.sqnr_db or math.inf)[:suspects]
    grids = {edit.site: edit for edit in recipe.rounds}
    with torch.no_grad():
        whole = GraphPredictor(graph)(batch)
        found = []
        for error in worst:
            alone = realise(graph, Recipe((grids[error.site],), recipe.signature))
            found.append((error.site, float((GraphPredictor(alone)(batch) - whole).norm() / whole.norm())))
    return sorted(found, key=lambda pair: -pair[1])


def _all(adders: Sequence[Callable[[Tensor], None]]) -> Callable[[Tensor], None]:
    def add(value: Tensor) -> None:
        for adder in adders:
            adder(value)

    return add


def _bits(grid: Grid) -> int:
    return grid.bits if isinstance(grid, Affine) else 16


def _add(sums: list[float], value: Tensor, grid: Grid) -> None:
    value = value.detach()
    near = fake(value, grid) if isinstance(grid, Affine) else torch.ops.seatrial.narrow_float(value, grid.kind)
    sums[0] += float(value.double().square().sum())
    sums[1] += float((near - value).double().square().sum())


def _ratio_db(signal: float, noise: float) -> float | None:
    if noise == 0:
        return None
    return 10 * math.log10(max(signal, 1e-300) / noise)
