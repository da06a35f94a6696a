"""SmoothQuant: a closed form that trades the range of each channel between activation and weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from seatrial.core.sites import Site, operators
from seatrial.errors import BadInput, no_calibration
from seatrial.quant.migrating import NO_PLACE, ranges_read, rounded_places, with_migrations
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
            raise no_calibration()
        places = rounded_places(graph, precision, gated=self.gated, values=self.values)
        named = operators(graph)
        seen = ranges_read(graph, calibration, places)
        edits = []
        for place in places:
            weights = [_by_input(graph, named[name]) for name in place.consumers]
            heavy = place.highest(torch.stack(weights).amax(0)).clamp(min=_LEAST)
            scale = place.highest(seen[place].largest).clamp(min=_LEAST) ** self.alpha / heavy ** (1 - self.alpha)
            edits.append(place.migration(torch.zeros_like(scale), scale))
        notes = () if places else (NO_PLACE,)
        return with_migrations(graph, calibration, precision, edits, self.grids, notes, rng=rng)


def _by_input(graph: Graph, consumer: fx.Node) -> Tensor:
    """Return the largest absolute weight that reads each channel."""
    weight = parameter_at(graph.module, consumer, 1)
    assert weight is not None, "consumers of a place have constant weights"
    return weight.abs().transpose(0, 1).flatten(1).amax(1)
