"""AWQ: scale up the input channels of weights whose activations are large, so that rounding spares them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, fx

from seatrial.core.constants import parameter_at
from seatrial.core.graph import Graph
from seatrial.core.insert_round import fake
from seatrial.core.precision import Precision
from seatrial.core.predictor import Inputs
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import source
from seatrial.core.recipe import Recipe
from seatrial.core.sites import Site, op_name, operators, site_of
from seatrial.errors import no_calibration
from seatrial.quant.channel_ranges import kept_rows
from seatrial.quant.migrating import rounded_places, with_migrations
from seatrial.quant.migration_places import Place
from seatrial.quant.nearest import Nearest, grid_of_weight
from seatrial.quant.staged_run import StagedRun, gram_of

_LEAST = 1e-4
NO_PLACE = "no norm or gated projection feeds linear operators alone whose weights are rounded: nothing was scaled"


@final
@dataclass(frozen=True)
class AWQ(Quantizer):
    """Multiply what reads channel j of a place by s_j = (mean |X_j|)^alpha, divide the channel, round with `grids`.

    Alpha is the best of `steps` from 0 (no scale) up to 1 at each place: least squared error of the outputs of its
    consumers with rounded weights, over all calibration tokens. Scales are divided by the root of the product of their
    ends. Rounded activations play no part in the choice.

    Source: Lin et al. 2023, section 3.2, eq. 4 and 5, and the authors' code for the normalization and the places.
    Departures: a place is judged by its linear operators, where the code runs the attention behind them; no scale
    between value and output projection; ranges are not clipped afterwards; all places are seen in the float network.
    """

    grids: Quantizer = field(default_factory=Nearest)
    steps: int = 20
    gated: bool = True

    def plan(
        self,
        graph: Graph,
        calibration: Sequence[Inputs],
        precision: Mapping[Site, Precision],
        *,
        rng: np.random.Generator,
    ) -> Recipe:
        """Return the migrations, then what `grids` plans on the migrated network.

        Raises BadInput without calibration data and for activations that are not finite, naming the site.
        """
        if not calibration:
            raise no_calibration()
        named = operators(graph)
        places = [
            place
            for place in rounded_places(graph, precision, gated=self.gated)
            if all(op_name(named[name]) == "linear" for name in place.consumers)
            and any(_asked(precision, name) is not None for name in place.consumers)
        ]
        edits = []
        for place, statistics in _statistics(graph, calibration, places):
            scale = self._scale(graph, precision, statistics)
            if scale is not None:
                edits.append(place.migration(torch.zeros_like(scale), scale))
        notes = () if places else (NO_PLACE,)
        return with_migrations(graph, calibration, precision, edits, self.grids, notes, rng=rng)

    def _scale(
        self, graph: Graph, precision: Mapping[Site, Precision], read: Mapping[str, Statistics]
    ) -> Tensor | None:
        """Return the scale of a place that rounds with the least error, None where that is no scale at all."""
        named, losses = operators(graph), [0.0] * self.steps
        mean = torch.stack([found.mean for found in read.values()]).mean(0)
        tried = [_normalized(mean, step / self.steps) for step in range(self.steps)]
        for name, found in read.items():
            wanted, weight = _asked(precision, name), parameter_at(graph.module, named[name], 1)
            assert weight is not None, "consumers of a place have constant weights"
            if wanted is not None:
                losses = [
                    loss + output_error(weight, found.gram, wanted, scale)
                    for loss, scale in zip(losses, tried, strict=True)
                ]
        best = int(np.argmin(losses))
        return tried[best] if best else None


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a linear operator read: X^T X and the mean of |X| of each channel, over tokens."""

    gram: Float[Tensor, "channels channels"]
    mean: Float[Tensor, " channels"]


def output_error(
    weight: Float[Tensor, "out channels"],
    gram: Float[Tensor, "channels channels"],
    wanted: Precision,
    scale: Float[Tensor, " channels"],
) -> float:
    """Return ||X (Q(W s) / s - W)^T||^2 for the inputs that `gram` is the X^T X of."""
    scaled = weight * scale
    off = fake(scaled, grid_of_weight(scaled, wanted)) / scale - weight
    return float(((off @ gram.to(off.dtype)) * off).sum())


def _normalized(mean: Tensor, alpha: float) -> Tensor:
    scale = mean.pow(alpha).clamp(min=_LEAST)
    return scale / (scale.max() * scale.min()).sqrt()


def _asked(precision: Mapping[Site, Precision], operator: str) -> Precision | None:
    """Return what is asked of an operator's weight, None where it stays float."""
    wanted = precision.get(site_of(operator, "weight"))
    return wanted if wanted is not None and wanted.float_type is None else None


def _statistics(
    graph: Graph, calibration: Sequence[Inputs], places: Sequence[Place]
) -> Iterator[tuple[Place, dict[str, Statistics]]]:
    """Yield each place with what its consumers read, as soon as all of them have been reached."""
    named = operators(graph)
    read: dict[Place, list[fx.Node]] = {
        place: [source(named[name], "input0") for name in place.consumers] for place in places
    }
    found: dict[fx.Node, Statistics] = {}
    run = StagedRun(graph, calibration, {node for nodes in read.values() for node in nodes})
    for stop in run:
        found[stop] = _seen(run, next(p.consumers[nodes.index(stop)] for p, nodes in read.items() if stop in nodes))
        for place in [place for place, nodes in read.items() if all(node in found for node in nodes)]:
            nodes = read.pop(place)
            yield place, {name: found[node] for name, node in zip(place.consumers, nodes, strict=True)}
            for node in set(nodes):
                del found[node]


def _seen(run: StagedRun, operator: str) -> Statistics:
    """Return the statistics of the value at the stop of a run."""
    gram, sizes, count = gram_of(run, operator), [], 0
    for value, mask in run.seen():
        rows = kept_rows(value, mask)
        sizes.append(rows.abs().sum(0))
        count += len(rows)
    return Statistics(gram, torch.stack(sizes).sum(0) / max(count, 1))
