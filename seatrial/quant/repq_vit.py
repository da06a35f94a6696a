"""RepQ-ViT: calibrate norms channel by channel, then fold what channels do not share into the weights around them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor, fx

from seatrial.core.channel_paths import channel_paths
from seatrial.core.graph import Graph
from seatrial.core.grids import Affine, Grid
from seatrial.core.precision import Precision
from seatrial.core.predictor import Inputs
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise, source
from seatrial.core.recipe import Migrate, Recipe, Round
from seatrial.core.sites import Site, attribute, op_name, operators, signature, site_of
from seatrial.errors import no_calibration
from seatrial.numerics.observe import tensors_of
from seatrial.numerics.ranges import Range
from seatrial.numerics.walk import Walk
from seatrial.quant.channel_ranges import ranges_of, rows_read, token_mask
from seatrial.quant.migrating import NO_PLACE
from seatrial.quant.migration_places import Place, migration_places
from seatrial.quant.nearest import Nearest
from seatrial.quant.operator_kinds import SOFTMAX, computed_by
from seatrial.quant.percentile_init import (
    SHARES,
    BestPercentile,
    channel_grids,
    check_shares,
    logarithmic_grid,
    percentile_weight_grid,
)


@final
@dataclass(frozen=True)
class RepQViT(Quantizer):
    """Scale reparameterization: what norms write gets one grid for each channel, turned into one for all by `Migrate`.

    Channel j of a norm is calibrated by itself, scale s_j and zero point z_j. With s and z their means, X becomes
    (X + s_j (z_j - z)) / (s_j / s) in the norm's gain and offset, undone in the weights that read it, and every channel
    lies on the one grid of s and z. Then weights are calibrated. Outputs of softmax go to powers of the square root of
    two. All ranges, of channels, tensors and weights, end at the percentile of `shares` that errs least.

    Source: Li et al. 2023 (RepQ-ViT, ICCV), eq. 9 to 18 and algorithm 1, with the authors' code for the percentiles.
    Departures: z is rounded and kept among the codes before channels are shifted by it, so that the grid holds zero
    and all channels lie on it exactly; where a shift cannot be folded (RMS norms) channels are scaled alone; everything
    is calibrated on the float network; weights keep the kind of grid that is asked for; a norm whose readers are asked
    for other than plain grids (around zero, signed, tied, dynamic, a float type) stays as it is, and such sites are
    rounded as `Nearest` with `ranges` does.
    """

    ranges: Range | None = None
    """Ranges of the activations that neither norms nor softmax write; None: the best of `shares`."""
    shares: tuple[float, ...] = SHARES
    """The authors' are meant for 4 bits and more; at 3 bits lower ones (0.98) lose less."""
    logarithmic: bool = True
    """False keeps plain grids behind softmax, which integer kernels read."""

    def __post_init__(self) -> None:
        check_shares(self.shares)

    def plan(
        self,
        graph: Graph,
        calibration: Sequence[Inputs],
        precision: Mapping[Site, Precision],
        *,
        rng: np.random.Generator,
    ) -> Recipe:
        """Return the migrations, then one round for each site asked for on the migrated network.

        Raises BadInput without calibration data and for activations that are not finite, naming the site.
        """
        if not calibration:
            raise no_calibration()
        places = _places(graph, precision)
        softmax = [
            site for site, wanted in precision.items() if self.logarithmic and _on_logarithms(graph, site, wanted)
        ]
        migrations, grids = self._calibrated(graph, calibration, precision, places, softmax)
        migrated = realise(graph, Recipe(tuple(migrations), signature(graph)))
        named = operators(migrated)
        for site, wanted in precision.items():
            if site.port == "weight" and wanted.float_type is None and wanted.group is None:
                value = source(named[site.operator], "weight")
                weight = attribute(migrated.module, str(value.target))
                grids[site] = percentile_weight_grid(weight, wanted, self.shares)
        rest = {site: wanted for site, wanted in precision.items() if site not in grids}
        plain = Nearest(self.ranges or BestPercentile(self.shares), bias_correction=False, equalization="none")
        grids |= {edit.site: edit.grid for edit in plain.plan(migrated, calibration, rest, rng=rng).rounds}
        rounds = [Round(site, grids[site]) for site in precision]
        return Recipe((*migrations, *rounds), signature(graph), () if migrations else (NO_PLACE,))

    def _calibrated(
        self,
        graph: Graph,
        calibration: Sequence[Inputs],
        precision: Mapping[Site, Precision],
        places: Mapping[Place, Sequence[Site]],
        softmax: Sequence[Site],
    ) -> tuple[list[Migrate], dict[Site, Grid]]:
        """Return the migrations of places and the grids at their sites and behind softmax; the network runs once."""
        named, batches = operators(graph), [tensors_of(graph, batch) for batch in calibration]
        masks = [token_mask(graph, batch) for batch in batches]
        first = {named[place.consumers[0]]: place for place in places}
        written: dict[fx.Node, list[Site]] = defaultdict(list)
        for site in softmax:
            written[source(named[site.operator], site.port)].append(site)
        migrations: list[Migrate] = []
        grids: dict[Site, Grid] = {}
        walk = Walk(graph, batches)
        for node in walk:
            if node in first:
                place = first[node]
                rows = _rows(place, named, walk, masks)
                asked = {site: precision[site].bits for site in places[place]}
                migration, found = self._reparameterized(place, rows, asked)
                migrations += migration
                grids |= found
            for site in written.get(node, ()):
                values = walk.values(node)
                ranges_of(torch.cat([value.reshape(-1, 1) for value in values]), site)  # refuses what is not finite
                grids[site] = logarithmic_grid(values, precision[site].bits, shares=self.shares)
        return migrations, grids

    def _reparameterized(
        self, place: Place, rows: Tensor, asked: Mapping[Site, int]
    ) -> tuple[list[Migrate], dict[Site, Grid]]:
        """Return the migration of a place and the grid of each site, given its bits.

        Source: Li et al. 2023, eq. 13 to 18.
        """
        bits = max(asked.values())
        found = channel_grids(rows, bits, shift=place.may_shift, shares=self.shares)
        if found is None:
            return [], {}
        scale = found.scale.mean()
        zero = found.zero_point.mean().round().clamp(0, 2**bits - 1)
        # With r1 = s_j / s and r2 = z_j - z: offset -> (offset + s_j r2) / r1, so Migrate's shift is -s_j r2.
        r1, r2 = found.scale / scale, found.zero_point - zero if place.may_shift else torch.zeros_like(found.scale)
        shift = torch.zeros_like(r1) - found.scale * r2
        migration = place.migration(shift.float(), r1.float())
        if not place.may_shift:
            return [migration], {}
        return [migration], {site: _narrowed(scale, zero, bits, width) for site, width in asked.items()}


def _narrowed(scale: Tensor, zero: Tensor, bits: int, width: int) -> Affine:
    """Return the grid of `width` bits with the range of that of `bits`."""
    steps = (2**bits - 1) / (2**width - 1)
    return Affine(width, False, (scale * steps).float(), (zero / steps).round().long())


def _places(graph: Graph, precision: Mapping[Site, Precision]) -> dict[Place, list[Site]]:
    """Return the norms whose consumers read plain grids, with the sites at which their output is rounded."""
    named = operators(graph)
    names = {node: name for name, node in named.items()}
    found = {}
    for place in migration_places(graph, gated=False):
        producer, consumers = named[place.producer], [named[name] for name in place.consumers]
        paths = channel_paths(producer, shifted=place.may_shift)
        carried = paths.covered(consumers) | {producer}
        inner = carried - set(consumers)
        sites = [site_of(names[node], "output") for node in inner]
        sites += [site_of(names[node], "input0") for node in carried if node.args and node.args[0] in inner]
        asked = [site for site in precision if site in set(sites)]
        if asked and all(_is_plain(precision[site]) for site in asked):
            found[place] = asked
    return found


def _is_plain(wanted: Precision) -> bool:
    other = wanted.float_type is not None or wanted.dynamic or wanted.tie is not None
    return not other and not wanted.symmetric and wanted.signed is not True


def _on_logarithms(graph: Graph, site: Site, wanted: Precision) -> bool:
    if site.port == "weight" or wanted.float_type is not None or wanted.dynamic or wanted.tie is not None:
        return False
    written = source(operators(graph)[site.operator], site.port)
    return wanted.signed is not True and op_name(computed_by(written)) in SOFTMAX


def _rows(place: Place, named: Mapping[str, fx.Node], walk: Walk, masks: Sequence[Tensor | None]) -> Tensor:
    """Return what the consumers of a place read, as rows of channels, over all batches."""
    readers = {named[name].args[0]: named[name] for name in place.consumers}
    rows = [
        rows_read(reader, value, mask)
        for read, reader in readers.items()
        for value, mask in zip(walk.values(read), masks, strict=True)  # pyright: ignore[reportArgumentType]
    ]
    together = torch.cat(rows)
    ranges_of(together, site_of(place.consumers[0], "input0"))  # refuses what is not finite
    return together
