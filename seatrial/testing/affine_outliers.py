"""Activation outliers that change nothing: channels of norms are wide and far off, and their readers take that back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seatrial.core.graph import Graph
from seatrial.core.predictor import Inputs
from seatrial.core.realise import realise
from seatrial.core.recipe import Recipe
from seatrial.core.sites import operators, signature
from seatrial.errors import BadInput
from seatrial.numerics.observe import tensors_of, watch
from seatrial.quant.channel_ranges import ChannelRanges, kept_rows, ranges_of, token_mask
from seatrial.quant.migration_places import Place, migration_places

OPT_RANGES = ((-97.0, -58.0), (5.7, 43.0))
"""Where two outlier channels of OPT-66B lie."""
_WIDTH = 40.0
_CENTERS = (-77.5, 77.5)


def affine_outliers(
    graph: Graph, calibration: Sequence[Inputs], *, channels: int = 6, typical: float = 3.0, rng: np.random.Generator
) -> Graph:
    """Return a graph that computes what `graph` does and has outliers in the same channels behind all its norms.

    Two of the channels get the ranges reported for OPT, further ones are 40 wide around centers drawn from -77.5 to
    77.5, all in units of which a typical channel reaches `typical`: the median over the other channels of their largest
    magnitude on the calibration data. A norm that cannot be shifted (RMS norm) is scaled so that the channel's largest
    magnitude is that of its range. Raises BadInput without calibration data, for a graph without norms that feed linear
    operators, and for norms with no more channels than that.

    Source: Wei et al. 2023 (Outlier Suppression+), section 3 and figure 1, by the affine change of their eq. 3 to 6 in
    the other direction.
    Departures: how far typical channels of OPT reach is not reported in numbers; 3 is a guess.
    """
    places = migration_places(graph, gated=False)
    if not places or not calibration:
        came = "no calibration data" if places else "a graph without norms that feed linear operators"
        raise BadInput(came, "a transformer and at least one batch", "pass them")
    wanted = _wanted(channels, rng)
    seen = _seen(graph, places, calibration)
    chosen = {
        width: torch.from_numpy(np.sort(rng.choice(width, channels, replace=False)))
        for width in sorted({_width(one, channels) for one in seen.values()})
    }
    edits = []
    for place, ranges in seen.items():
        at = chosen[len(ranges.low)]
        rest = torch.ones_like(ranges.low).index_fill(0, at, 0) > 0
        aims = wanted.to(ranges.low.dtype) * float(ranges.largest[rest].median()) / typical
        scale, shift = torch.ones_like(ranges.low), torch.zeros_like(ranges.low)
        if place.may_shift:
            scale[at] = (ranges.high[at] - ranges.low[at]) / (aims[:, 1] - aims[:, 0])
            shift[at] = ranges.low[at] - aims[:, 0] * scale[at]
        else:
            scale[at] = ranges.largest[at] / aims.abs().amax(1)
        if not bool((scale > 0).all()):
            raise BadInput(f"a channel that never varies at {place.producer}", "another channel", "take another seed")
        edits.append(place.migration(shift, scale))
    return realise(graph, Recipe(tuple(edits), signature(graph)))


def _wanted(channels: int, rng: np.random.Generator) -> Float[Tensor, "channels 2"]:
    """Return the lowest and highest value of each channel, in units of OPT, in random order."""
    centers = rng.uniform(*_CENTERS, max(0, channels - len(OPT_RANGES)))
    others = [(center - _WIDTH / 2, center + _WIDTH / 2) for center in centers]
    return torch.from_numpy(rng.permutation(np.array([*OPT_RANGES[:channels], *others])))


def _width(ranges: ChannelRanges, channels: int) -> int:
    width = len(ranges.low)
    if not 1 <= channels < width:
        raise BadInput(f"outliers in {channels} of {width} channels", "at least 1, fewer than all", "ask for fewer")
    return width


def _seen(graph: Graph, places: Sequence[Place], calibration: Sequence[Inputs]) -> dict[Place, ChannelRanges]:
    """Return the channel ranges of what each producer writes, without what fills sentences up."""
    named = operators(graph)
    found: dict[Place, ChannelRanges] = {}

    def joining(place: Place, mask: Tensor | None) -> Callable[[Tensor], None]:
        def join(value: Tensor) -> None:
            now = ranges_of(kept_rows(value, mask), place.producer)
            found[place] = found[place].joined(now) if place in found else now

        return join

    for batch in calibration:
        mask = token_mask(graph, tensors_of(graph, batch))
        watch(graph, [batch], {named[one.producer]: joining(one, mask) for one in places})
    return found
