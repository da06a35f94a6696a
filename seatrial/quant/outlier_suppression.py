"""Outlier Suppression: move the gain of each norm into what reads it, so that it no longer widens the activation."""

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
from seatrial.core.sites import Site, op_name, operators
from seatrial.quant.migrating import NO_PLACE, rounded_places, with_migrations
from seatrial.quant.nearest import Nearest

_LEAST = 1e-4
"""The smallest share of the largest gain that is moved: a channel of gain 0 carries its shift alone."""


@final
@dataclass(frozen=True)
class OutlierSuppression(Quantizer):
    """Gamma migration: divide what a norm writes by the absolute value of its gain, then round with `grids`.

    Source: Wei et al. 2022 (NeurIPS), section 4.1; its token-wise clipping is `seatrial.numerics.token_wise`.
    Departures: the sign of a gain stays with the norm.
    """

    grids: Nearest = field(default_factory=Nearest)

    def plan(
        self,
        graph: Graph,
        calibration: Sequence[Inputs],
        precision: Mapping[Site, Precision],
        *,
        rng: np.random.Generator,
    ) -> Recipe:
        """Return the migrations, then the rounds of `grids` on the migrated network; raises as `grids` does."""
        named, edits = operators(graph), []
        for place in rounded_places(graph, precision, gated=False):
            gain = _gain(graph, named[place.producer])
            if gain is None:
                continue
            scale = gain.abs()
            scale = scale.clamp(min=_LEAST * float(scale.max().clamp(min=1e-30)))
            edits.append(place.migration(torch.zeros_like(scale), scale))
        notes = () if edits else (NO_PLACE,)
        return with_migrations(graph, calibration, precision, edits, self.grids, notes, rng=rng)


def _gain(graph: Graph, producer: fx.Node) -> Tensor | None:
    """Return the gain of a norm, None where it has none."""
    if op_name(producer) == "layer_norm":
        return parameter_at(graph.module, producer, 2)
    found = [parameter_at(graph.module, producer, index) for index in (0, 1)]
    return next(gain for gain in found if gain is not None)
