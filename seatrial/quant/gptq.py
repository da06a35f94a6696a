"""GPTQ: round a weight column by column; what a column loses is made up for by those that are not rounded yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, fx

from seatrial.core.constants import parameter_at
from seatrial.core.graph import Graph
from seatrial.core.grids import Affine, Grouped
from seatrial.core.precision import Precision
from seatrial.core.predictor import Inputs
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise, source
from seatrial.core.recipe import Edit, Recipe, Replace, Round
from seatrial.core.sites import Site, op_name, operators, signature
from seatrial.errors import BadInput, no_calibration
from seatrial.numerics.ranges import weight_grid
from seatrial.quant.nearest import Nearest
from seatrial.quant.staged_run import StagedRun, gram_of
from seatrial.quant.weight_grids import RangeSearch, grouped_grid

_BLOCK = 128
"""Columns between two updates of all that follow, where groups do not set it: one product in place of many."""


@final
@dataclass(frozen=True)
class GPTQ(Quantizer):
    """Weights of linear operators by GPTQ, everything else that is asked for by `grids`.

    `damping` is the share of the mean of the Hessian's diagonal that is added to it. With `act_order`, columns are
    rounded in falling order of the squares of what they read; grids of groups then come from the weight as it was.
    `search` chooses ranges of groups by their error, None takes them whole.

    Source: Frantar et al. 2022, algorithm 1 and section 3.3, with the authors' options `act-order`, `static-groups`
    (implied by act-order here: runtimes want groups of neighbors) and `mse`. Departures: the order of the graph takes
    the place of blocks, so every Hessian is that of inputs behind all that was rounded before (the authors' option
    `true-sequential`); inputs that are zero on all calibration data keep their weights, rounded to nearest, where the
    authors' code sets them to zero; a block of columns is a group, so that a group's grid is read off weights that
    every column before it has updated.
    """

    grids: Nearest = field(default_factory=Nearest)
    damping: float = 0.01
    act_order: bool = True
    search: RangeSearch | None = field(default_factory=RangeSearch)

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1:
            raise BadInput(f"a damping of {self.damping}", "above 0 and at most 1", "0.01 is the authors'")

    def plan(
        self,
        graph: Graph,
        calibration: Sequence[Inputs],
        precision: Mapping[Site, Precision],
        *,
        rng: np.random.Generator,
    ) -> Recipe:
        """Return the edits of `grids`, then new weights and their grids, on which they already lie.

        Raises BadInput without calibration data and for activations that are not finite, naming the site.
        """
        if not calibration:
            raise no_calibration()
        named = operators(graph)
        solved = {site: wanted for site, wanted in precision.items() if _is_linear_weight(graph, named, site, wanted)}
        rest = {site: wanted for site, wanted in precision.items() if site not in solved}
        others = self.grids.plan(graph, calibration, rest, rng=rng)
        edits = self._solved(realise(graph, others), calibration, solved) if solved else []
        return Recipe((*others.edits, *edits), signature(graph), others.notes)

    def _solved(self, graph: Graph, calibration: Sequence[Inputs], solved: Mapping[Site, Precision]) -> list[Edit]:
        named, readers = operators(graph), defaultdict[fx.Node, list[Site]](list)
        for site in solved:
            readers[source(named[site.operator], "input0")].append(site)
        edits: list[Edit] = []
        run = StagedRun(graph, calibration, readers)
        for stop in run:
            gram = gram_of(run, readers[stop][0].operator)
            for site in readers[stop]:
                weight = parameter_at(graph.module, named[site.operator], 1)
                assert weight is not None
                rounded, grid = self.rounded(weight, gram, solved[site])
                run.put_weight(named[site.operator], rounded)
                edits += [Replace(site, rounded), Round(site, grid)]
        return edits

    def rounded(
        self, weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], wanted: Precision
    ) -> tuple[Float[Tensor, "out in"], Affine | Grouped]:
        """Return the new weight and the grid that it lies on; `gram` is X^T X of the inputs."""
        gram = gram.double()
        order = torch.arange(len(gram))
        if self.act_order:
            order = torch.argsort(gram.diagonal(), descending=True, stable=True)
        work, columns = weight[:, order], order.tolist()
        factor = _inverse_factor(gram[order][:, order], self.damping).to(work.dtype)
        whole = None if wanted.group and not self.act_order else self._grid(weight, wanted)
        width = _BLOCK if whole is not None or wanted.group is None else wanted.group
        found: list[Grouped] = []
        for start in range(0, len(columns), width):
            end = min(start + width, len(columns))
            if whole is None:
                found.append(grouped_grid(work[:, start:end], wanted, self.search))
                line, numbers = _line(found[-1], work.dtype), range(end - start)
            else:
                line, numbers = _line(whole, work.dtype), columns[start:end]
            off = _round_block(work[:, start:end], factor[start:end, start:end], line, numbers)
            work[:, end:] -= off @ factor[start:end, end:]
        return work[:, torch.argsort(order)], _joined(found) if whole is None else whole

    def _grid(self, weight: Tensor, wanted: Precision) -> Affine | Grouped:
        return grouped_grid(weight, wanted, self.search) if wanted.group else weight_grid(weight, wanted)


def _is_linear_weight(graph: Graph, named: Mapping[str, fx.Node], site: Site, wanted: Precision) -> bool:
    node = named[site.operator]
    if site.port != "weight" or op_name(node) != "linear" or wanted.float_type is not None:
        return False
    return parameter_at(graph.module, node, 1) is not None


def _inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of the inverse of the damped Hessian."""
    mean = gram.diagonal().mean()
    level = torch.where(mean > 0, mean, torch.ones_like(mean))
    unused = (gram.diagonal() == 0).double() * level
    lower = torch.linalg.cholesky(gram + torch.diag(unused + damping * level))
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)


def _round_block(
    block: Tensor, factor: Tensor, line: Callable[[Tensor, int], Tensor], numbers: Sequence[int]
) -> Tensor:
    """Round the columns of a block in place, each before those behind it take up its error.

    Returns the errors, divided by the diagonal of the factor. Source: Frantar et al. 2022, eq. 2 with 3.
    """
    off = torch.empty_like(block)
    for j, number in enumerate(numbers):
        rounded = line(block[:, j], number)
        off[:, j] = (block[:, j] - rounded) / factor[j, j]
        block[:, j] = rounded
        block[:, j + 1 :] -= off[:, j, None] * factor[j, j + 1 :]
    return off


def _line(grid: Affine | Grouped, dtype: torch.dtype) -> Callable[[Tensor, int], Tensor]:
    """Return the function that rounds a column, given its number, exactly as the grid's own operator does."""
    low, high = grid.codes if isinstance(grid, Affine) else (0, 2**grid.bits - 1)
    scale, zero = grid.scale.float().to(dtype), grid.zero_point.to(dtype)

    def rounded(values: Tensor, column: int) -> Tensor:
        step, origin = scale, zero
        if isinstance(grid, Grouped):
            step, origin = scale[:, column // grid.group], zero[:, column // grid.group]
        elif grid.axis == 1:
            step, origin = scale[column], zero[column]
        return ((values / step).round() + origin).clamp(low, high).sub(origin) * step

    return rounded


def _joined(parts: Sequence[Grouped]) -> Grouped:
    """Return the grid of a weight from those of its groups."""
    scale = torch.cat([part.scale for part in parts], 1)
    return Grouped(parts[0].bits, scale, torch.cat([part.zero_point for part in parts], 1), parts[0].group)
