"""Choose the grids of a block, one site after the other, by a loss of the block's output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Literal, final

from torch import Tensor

from seatrial.core.grids import Affine
from seatrial.core.insert_round import fake
from seatrial.core.precision import Precision
from seatrial.core.sites import Site
from seatrial.numerics.ranges import grid_for
from seatrial.quant.coarse_to_fine import least_step
from seatrial.quant.rounded_block import RoundedBlock

_WIDEST = 1.2
"""The largest share of the min-max range that is tried."""
_PRESERVING = 16
"""Shares from 1 to the largest that are tried for a softmax that keeps its largest value."""
_AROUND = (0.8, 0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 1.2)
"""Shares of the present range that later rounds try."""

Loss = Callable[[Tensor], float]


@final
@dataclass(frozen=True)
class BlockSearch:
    """Coordinate descent over the sites of a block, see `APQViT` for the options."""

    softmax: Literal["preserving", "searched", "map-error"]
    maps: Set[Site]
    """Sites that round a softmax."""
    rounds: int
    steps: int
    full: bool

    def run(
        self, block: RoundedBlock, loss: Loss, precision: Mapping[Site, Precision], ranges: Mapping[Site, Affine]
    ) -> dict[Site, Affine]:
        """Return the grids of the block's sites in `precision`, all of which have a min-max grid in `ranges`.

        The block holds the grids afterwards; no step of the search makes its loss larger.
        """
        sites = [site for site in block.sites if site in precision]
        least = loss(block.output)
        for number in range(self.rounds):
            for site in sites:
                wanted, base = precision[site], ranges[site]
                preserving = self.softmax != "searched" and site in self.maps
                if preserving and self.softmax == "map-error":
                    if number == 0:
                        block.put(site, _by_map(block, site, base))
                        least = loss(block.output)
                    continue
                floor = _ends(base)[1] if preserving else 0.0
                if preserving and number == 0:
                    # Where the search starts may clip; that is no candidate here.
                    block.put(site, base)
                    least = loss(block.output)
                if number == 0:
                    grid, reached = self._coarse(block, loss, site, base, preserving)
                else:
                    grid, reached = _local(block, loss, site, wanted, floor)
                if reached < least:
                    least = reached
                    block.put(site, grid)
        return {site: block.grid(site) for site in sites}

    def _coarse(
        self, block: RoundedBlock, loss: Loss, site: Site, base: Affine, preserving: bool
    ) -> tuple[Affine, float]:
        count = _PRESERVING if preserving else self.steps

        def share(step: int) -> float:
            return 1 + (_WIDEST - 1) * step / count if preserving else _WIDEST * step / count

        def losses(steps: list[int]) -> list[float]:
            return [loss(block.tried(site, scaled(base, share(step)))) for step in steps]

        step, reached = least_step(losses, count, full=self.full)
        return scaled(base, share(step)), reached


def _by_map(block: RoundedBlock, site: Site, base: Affine) -> Affine:
    """Return the grid with the least squared error of the map among those that keep its largest value."""
    shares = [1 + (_WIDEST - 1) * step / _PRESERVING for step in range(_PRESERVING + 1)]
    source = block.source(site)
    tried = [scaled(base, share) for share in shares]
    return min(tried, key=lambda grid: float((fake(source, grid) - source).square().mean()))


def _local(block: RoundedBlock, loss: Loss, site: Site, wanted: Precision, floor: float) -> tuple[Affine, float]:
    """Return the best grid around the present one; the upper end of an activation stays at or above `floor`."""
    present = block.grid(site)
    tried = [grid for grid in _around(present, wanted) if not floor or _ends(grid)[1] >= floor * (1 - 1e-6)]
    losses = [loss(block.tried(site, grid)) for grid in tried]
    if not losses:
        return present, float("inf")
    best = min(range(len(losses)), key=losses.__getitem__)
    return tried[best], losses[best]


def _around(present: Affine, wanted: Precision) -> Iterator[Affine]:
    for share in _AROUND:
        yield scaled(present, share)
    if present.axis is None:
        low, high = _ends(present)
        if low < 0 < high and not wanted.symmetric:
            for share in _AROUND:
                yield grid_for(low * share, high, wanted)
                yield grid_for(low, high * share, wanted)


def scaled(grid: Affine, share: float) -> Affine:
    """Return the grid with a range of so many times the width: of each channel where it has channels."""
    return replace(grid, scale=grid.scale * share)


def _ends(grid: Affine) -> tuple[float, float]:
    """Return the lowest and highest value of a grid of one scale; of one around zero, as far down as up."""
    scale, zero = float(grid.scale), int(grid.zero_point)
    low, high = grid.codes
    if grid.signed and not zero:
        low = -high
    return (low - zero) * scale, (high - zero) * scale
