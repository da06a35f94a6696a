"""SmoothQuant: a closed form that trades the range of each channel between activation and weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import final

import numpy as np
import torch
from torch import Tensor, fx

from seatrial.core.constants import parameter_at
from seatrial.core.graph import Graph
from seatrial.core.precision import Precision
from seatrial.core.predictor import Inputs
from seatrial.core.quantizer import Quantizer
from seatrial.core.recipe import Recipe
from seatrial.core.sites import Site, operators, site_of
from seatrial.errors import BadInput
from seatrial.numerics.observe import tensors_of, watch
from seatrial.quant.channel_ranges import ranges_of, rows_read, token_mask
from seatrial.quant.migrating import NO_PLACE, rounded_places, with_migrations
from seatrial.quant.migration_places import Place
from seatrial.quant.nearest import Nearest

_LEAST = 1e-5


@final
@dataclass(frozen=True)
class SmoothQuant(Quantizer):
    """Divide channel j of what norms write by s_j = max |X_j|^alpha / max |W_j|^(1 - alpha), then round with `grids`.

    The maxima are over all calibration batches, without what fills sentences up, and over all consumers of a place.
    Source: Xiao et al. 2023, eq. 4, at the places of `seatrial.quant.migration_places`. Departures: gated projections
    too, if `gated`, and values of attentions, if `values`; maxima below 1e-5 count as that, as in the authors' code.
    """

    grids: Nearest = field(default_factory=Nearest)
    alpha: float = 0.5
    gated: bool = False
    values: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise BadInput(f"alpha {self.alpha}", "from 0 to 1", "0.5 is the authors'")

    def plan(
        self,
        graph: Graph,
        calibration: Sequence[Inputs],
        precision: Mapping[Site, Precision],
        *,
        rng: np.random.Generator,
    ) -> Recipe:
        """Return the migrations, then the rounds of `grids` on the migrated network.

        Raises BadInput without calibration data and for activations that are not finite, naming the site.
        """
        if not calibration:
            raise BadInput("no calibration data", "at least one batch", "pass calibration samples")
        places = rounded_places(graph, precision, gated=self.gated, values=self.values)
        named = operators(graph)
        reach: dict[Place, Tensor] = {}
        for batch in calibration:
            mask = token_mask(graph, tensors_of(graph, batch))
            readers = {
                named[name].args[0]: partial(_see, reach, place, named[name], mask)
                for place in places
                for name in place.consumers[:1]
            }
            watch(graph, [batch], readers)  # pyright: ignore[reportArgumentType]
        edits = []
        for place in places:
            weights = [_by_input(graph, named[name]) for name in place.consumers]
            heavy = place.highest(torch.stack(weights).amax(0)).clamp(min=_LEAST)
            scale = place.highest(reach[place]).clamp(min=_LEAST) ** self.alpha / heavy ** (1 - self.alpha)
            edits.append(place.migration(torch.zeros_like(scale), scale))
        notes = () if places else (NO_PLACE,)
        return with_migrations(graph, calibration, precision, edits, self.grids, notes, rng=rng)


def _see(reach: dict[Place, Tensor], place: Place, consumer: fx.Node, mask: Tensor | None, value: Tensor) -> None:
    """Keep the largest absolute value of each channel that a consumer reads."""
    seen = ranges_of(rows_read(consumer, value, mask), site_of(place.consumers[0], "input0")).largest
    reach[place] = torch.maximum(reach[place], seen) if place in reach else seen


def _by_input(graph: Graph, consumer: fx.Node) -> Tensor:
    """Return the largest absolute weight that reads each channel."""
    weight = parameter_at(graph.module, consumer, 1)
    assert weight is not None, "consumers of a place have constant weights"
    return weight.abs().transpose(0, 1).flatten(1).amax(1)
