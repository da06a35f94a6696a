"""PTQ4ViT: search every scale by its effect on the loss, with twin grids behind softmax and GELU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from seatrial.core.graph import Graph
from seatrial.core.grids import Affine, Grid, Grouped, Twin
from seatrial.core.precision import Precision
from seatrial.core.predictor import Inputs
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import source
from seatrial.core.recipe import Recipe, Round
from seatrial.core.sites import Site, op_name, operators, signature
from seatrial.errors import BadInput, no_calibration
from seatrial.numerics.observe import tensors_of
from seatrial.numerics.ranges import MeanSquaredError, MinMax, Range
from seatrial.quant.factor_search import FactorSearch
from seatrial.quant.judged_units import judged_units
from seatrial.quant.loss_gradients import loss_gradients
from seatrial.quant.nearest import Nearest
from seatrial.quant.operator_kinds import SOFTMAX, computed_by
from seatrial.quant.unit_error import UnitError, values_of_units

GELU_LOWEST = 0.16997
"""How far GELU goes below zero (at -0.75)."""


@final
@dataclass(frozen=True)
class PTQ4ViT(Quantizer):
    """Search the scale of each weight, activation and operand of a product by its effect on the loss.

    A layer is a linear operator, a convolution, a product of activations, or whatever else reads what is rounded. Its
    scales are factors of min-max grids, chosen one after the other, weights first, in `rounds` passes, so that
    sum (g (O - O^))^2 is least: O are the layer's outputs in the float network, O^ those of the layer alone with
    rounded inputs and weights, g the gradients of the loss at O, sample by sample (see
    `seatrial.quant.loss_gradients`). Channels of a weight with a scale each are searched apart, since they do not
    meet. With `twin`, outputs of softmax have a fine grid up to a split and a coarse one up to 1, the split searched
    among 2^0 to 2^-19, and outputs of GELU a fixed grid below zero and a searched one above. Networks must give
    logits.

    Source: Yuan et al. 2022 (PTQ4ViT), sections 3.2 and 3.3, algorithm 1; numbers from the authors' code.
    Departures: the loss is the cross entropy against the network's own answer, because a divergence from its own
    prediction has no gradient; factors are searched from coarse to fine, and after the first pass near the present
    one, as `search` says (its `full` tries all); channels of a weight where the authors take one scale for each of
    query, key and value; a grid whose range lies to one side keeps its zero point; an activation with several readers
    has one grid, judged at all of them. Activations tied to others, dynamic, or of a float type are as `Nearest`
    with `ranges` has them, and so is the sign that is asked for: signed values are not twins.
    """

    ranges: Range = field(default_factory=MeanSquaredError)
    """Ranges of activations that are not searched."""
    twin: bool = True
    """False keeps plain grids, which integer kernels read."""
    search: FactorSearch = field(default_factory=FactorSearch)
    rounds: int = 3
    splits: int = 20
    chunk: int = 8
    """Samples at a time when gradients are computed."""

    def __post_init__(self) -> None:
        if min(self.rounds, self.splits, self.chunk) < 1:
            came = f"{self.rounds} rounds, {self.splits} splits and chunks of {self.chunk}"
            raise BadInput(came, "at least one of each", "give larger numbers")

    def plan(
        self,
        graph: Graph,
        calibration: Sequence[Inputs],
        precision: Mapping[Site, Precision],
        *,
        rng: np.random.Generator,
    ) -> Recipe:
        """Return one round for each site asked for.

        Raises BadInput without calibration data, for networks whose first output is not logits [batch, classes], and
        for activations that are not finite, naming the site.
        """
        if not calibration:
            raise no_calibration()
        free = {site: wanted for site, wanted in precision.items() if _is_searched(site, wanted)}
        rest = {site: wanted for site, wanted in precision.items() if site not in free}
        grids: dict[Site, Grid] = {}
        for ranges, part in ((MinMax(), free), (self.ranges, rest)):
            plain = Nearest(ranges, bias_correction=False, equalization="none")
            grids |= {edit.site: edit.grid for edit in plain.plan(graph, calibration, part, rng=rng).rounds}
        if self.twin:
            grids |= {site: _twin(graph, site, grids[site], wanted) for site, wanted in free.items()}
        batches = [tensors_of(graph, batch) for batch in calibration]
        flat = self._searched(graph, batches, grids, free) if free else []
        notes = (f"the loss has no slope at {', '.join(flat)}: errors count alike there",) if flat else ()
        return Recipe(tuple(Round(site, grids[site]) for site in precision), signature(graph), notes)

    def _searched(
        self,
        graph: Graph,
        batches: Sequence[tuple[Tensor, ...]],
        grids: dict[Site, Grid],
        free: Mapping[Site, Precision],
    ) -> list[str]:
        """Put the grids that are found for free sites in place; return the operators whose outputs have no gradient."""
        units = [unit for unit in judged_units(graph, grids) if any(site in free for site in unit.sites)]
        layers = list(dict.fromkeys(layer for unit in units for layer in unit.layers))
        names, flat = {node: name for name, node in operators(graph).items()}, []
        with ExitStack() as stack:
            slopes = [stack.enter_context(loss_gradients(graph, batch, layers, chunk=self.chunk)) for batch in batches]
            for unit, values in values_of_units(graph, batches, units):
                gradients = {layer: [of[layer] for of in slopes] for layer in unit.layers}
                error = UnitError(graph, unit, values, gradients, grids)
                flat += [names[layer] for layer in unit.layers if error.is_flat]
                self._search_unit(error, [site for site in unit.sites if site in free])
                grids |= error.grids
        return flat

    def _search_unit(self, error: UnitError, free: Sequence[Site]) -> None:
        sites = sorted(free, key=lambda site: site.port != "weight")
        start = {site: error.grids[site] for site in sites}
        factors = {site: torch.ones(error.channels(site)) for site in sites}
        for number in range(self.rounds):
            before = dict(error.grids)
            for site in sites:
                grid = start[site]
                if isinstance(grid, Twin) and not grid.by_sign:
                    error.put(site, _best_split(error, site, grid, self.splits))
                    continue
                found = self.search.better(
                    lambda tried, site=site, grid=grid: error.of(site, scaled(grid, tried)),
                    factors[site],
                    near=number > 0,
                )
                if not torch.equal(found, factors[site]):
                    factors[site] = found
                    error.put(site, scaled(grid, found))
            if all(error.grids[site] is before[site] for site in sites):
                return


def scaled(grid: Grid, factor: Tensor) -> Grid:
    """Return a grid with its scales times a factor, one for all or one a channel; of a twin by sign, the coarse one."""
    match grid:
        case Affine(axis=None):
            return replace(grid, scale=grid.scale * factor[0])
        case Affine():
            return replace(grid, scale=grid.scale * factor)
        case Grouped():
            return replace(grid, scale=grid.scale * factor[:, None])
        case Twin():
            return replace(grid, coarse=grid.coarse * factor[0])
    raise TypeError(f"not a grid with a scale to search: {grid!r}")


def _is_searched(site: Site, wanted: Precision) -> bool:
    static = wanted.float_type is None and not wanted.dynamic
    return static and (site.port == "weight" or wanted.tie is None)


def _twin(graph: Graph, site: Site, grid: Grid, wanted: Precision) -> Grid:
    """Return the twin grid that a search starts from behind softmax and GELU, elsewhere the grid itself."""
    if site.port == "weight" or wanted.signed or not isinstance(grid, Affine):
        return grid
    kind = op_name(computed_by(source(operators(graph)[site.operator], site.port)))
    half = 2 ** (wanted.bits - 1)
    if kind in SOFTMAX:
        whole = torch.tensor(1 / (half - 1))
        return Twin(wanted.bits, whole, whole)
    if kind == "gelu":
        top = grid.scale * (grid.codes[1] - grid.zero_point)
        return Twin(wanted.bits, torch.tensor(GELU_LOWEST / half), top / (half - 1), by_sign=True)
    return grid


def _best_split(error: UnitError, site: Site, start: Twin, splits: int) -> Twin:
    """Return the twin whose fine grid ends at the best power of two; the present one where none is better."""
    present = error.grids[site]
    assert isinstance(present, Twin)
    best, least = present, float(error.of(site, present))
    for power in range(splits):
        tried = replace(start, fine=start.coarse * 2.0**-power)
        found = float(error.of(site, tried))
        if found < least:
            best, least = tried, found
    return best
