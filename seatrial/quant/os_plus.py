"""OS+: shift channels to a common middle and scale the widest, with one threshold a place chosen on what follows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.precision import Precision
from seatrial.core.predictor import Inputs
from seatrial.core.quantizer import Quantizer
from seatrial.core.recipe import Migrate, Recipe
from seatrial.core.sites import Site, operators, shape_of, site_of
from seatrial.errors import BadInput, no_calibration
from seatrial.numerics.observe import tensors_of
from seatrial.quant.channel_ranges import ChannelRanges, ranges_of, rows_read, token_mask
from seatrial.quant.migrated_consumer import MigratedConsumer
from seatrial.quant.migrating import (
    NO_PLACE,
    asked_of_input,
    ranges_read,
    rounded_places,
    with_migrations,
    written_before,
)
from seatrial.quant.migration_places import Place
from seatrial.quant.nearest import Nearest
from seatrial.quant.place_loss import PlaceLoss
from seatrial.quant.rounded_walk import RoundedWalk
from seatrial.quant.threshold_search import best_scale


@final
@dataclass(frozen=True)
class OSPlus(Quantizer):
    """Outlier Suppression+: migrate shift and scale of each norm's channels into what reads it, then round.

    At every norm that feeds rounded linear operators, and at gated projections, X becomes (X - z) / s: z is the middle
    of each channel's range, s_j(t) = max(1, max |X_j - z_j| / t) for the threshold t of `thresholds` equal steps up to
    the widest channel whose rounded outputs (see `seatrial.quant.place_outputs`) are nearest to the unrounded ones.
    Ranges come from all calibration batches without what fills sentences up, the loss from samples drawn from the
    first, with all earlier operators rounded. The shift is left out where it cannot be folded away (RMS norms).
    Afterwards `grids` rounds the migrated network.

    Source: Wei et al. 2023 (EMNLP), eq. 3 to 10 and algorithm 1; places of the residual branch: their appendix.
    Departures: the paper takes ranges from one batch, where a channel with a long tail (a gated product) is scaled by
    too little and then widens the tensor; thresholds are searched from coarse to fine, which finds that of the full
    search wherever the loss has one valley (`full_search` tries them all); where the widest channel lies to one side
    (RMS norms), the range of the search is what lies within the threshold, not all of -t to t; norms that the paper
    leaves alone because of their class (the last one before a head) are places too.
    """

    grids: Nearest = field(default_factory=Nearest)
    shift: bool = True
    scale: bool = True
    gated: bool = True
    """Scale between the two projections of gated blocks too."""
    values: bool = False
    """Between the projections before and behind an attention too, for its values (not in the paper)."""
    objective: Literal["output", "layers"] = "output"
    """`output`: the attention's output, or the gated product; `layers`: the sum over the linear operators."""
    thresholds: int = 100
    full_search: bool = False
    tokens: int = 1024
    """Tokens of the first batch on which the loss is computed, at least one sample."""

    def __post_init__(self) -> None:
        if self.thresholds < 1 or self.tokens < 1:
            came = f"{self.thresholds} thresholds and {self.tokens} tokens"
            raise BadInput(came, "at least one of each", "give larger numbers")

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
        search = _Search(self, graph, precision, places)
        migrations = search.run(tensors_of(graph, calibration[0]), rng, ranges_read(graph, calibration[1:], places))
        notes = () if places else (NO_PLACE,)
        return with_migrations(graph, calibration, precision, migrations, self.grids, notes, rng=rng)


class _Search:
    """Finds the migrations of one graph, place by place."""

    def __init__(
        self, options: OSPlus, graph: Graph, precision: Mapping[Site, Precision], places: Sequence[Place]
    ) -> None:
        self.options, self.graph, self.precision, self.places = options, graph, precision, places
        self.named = operators(graph)
        self.names = {node: name for name, node in self.named.items()}

    def run(
        self, batch: tuple[Tensor, ...], rng: np.random.Generator, seen: Mapping[Place, ChannelRanges]
    ) -> list[Migrate]:
        """Return one migration for each place where something changes; `seen` are ranges of other batches."""
        drawn = _drawn(batch, self.options.tokens, self._tokens(batch), rng)
        masks = [token_mask(self.graph, rows) for rows in (batch, drawn)]
        first = {self.named[place.consumers[0]]: place for place in self.places}
        consumers = {self.named[name] for place in self.places for name in place.consumers}
        walk = RoundedWalk(self.graph, [batch, drawn], self.precision, self._passed())
        edits: list[Migrate] = []
        migrated: dict[fx.Node, MigratedConsumer] = {}
        for node in walk:
            if node in first:
                edit, taking = self._decide(first[node], walk, masks, seen)
                edits += [] if edit is None else [edit]
                migrated.update(taking)
            if node in consumers:
                self._go_on(node, migrated[node], walk)
        return edits

    def _tokens(self, batch: tuple[Tensor, ...]) -> int:
        """Return the tokens of a sample: of a text as it is given, of a picture where a network has the fewest."""
        if batch[0].ndim == 2:
            return batch[0].shape[1]
        shapes = [shape_of(self.named[place.producer])[1:-1] for place in self.places]
        counts = [math.prod(shape) for shape in shapes if all(isinstance(size, int) for size in shape)]
        return min(counts, default=1)

    def _passed(self) -> set[Site]:
        """Return the sites whose rounds the consumers of places take over."""
        found = set()
        for place in self.places:
            producer = self.named[place.producer]
            for name in place.consumers:
                found |= {site_of(name, "input0"), site_of(name, "weight")}
                before = written_before(self.named[name], self.names, producer)
                found |= {site_of(self.names[value], "output") for value in before}
            if place.kind == "norm":
                found.add(site_of(place.producer, "output"))
        return found

    def _decide(
        self,
        place: Place,
        walk: RoundedWalk,
        masks: Sequence[Tensor | None],
        seen: Mapping[Place, ChannelRanges],
    ) -> tuple[Migrate | None, dict[fx.Node, MigratedConsumer]]:
        nodes = [self.named[name] for name in place.consumers]
        read = {node: walk.values(node.args[0]) for node in nodes}  # pyright: ignore[reportArgumentType]
        ranges = self._ranges(place, {node: values[0] for node, values in read.items()}, masks[0])
        ranges = ranges.joined(seen.get(place, ranges))
        ranges = ChannelRanges(-place.highest(-ranges.low), place.highest(ranges.high))
        shift = ranges.middle if self.options.shift and place.may_shift else torch.zeros_like(ranges.low)
        reach = torch.maximum(ranges.high - shift, shift - ranges.low)
        asked = {
            node: (
                asked_of_input(node, self.names, self.precision),
                self.precision.get(site_of(self.names[node], "weight")),
            )
            for node in nodes
        }
        taking = {node: MigratedConsumer(self.graph, node, *asked[node], ranges, shift) for node in nodes}
        scale = torch.ones_like(reach)
        if self.options.scale and float(reach.max()) > 0:
            loss = PlaceLoss(
                taking, {node: values[1] for node, values in read.items()}, walk, masks[1], self.options.objective
            )
            scale, _ = best_scale(loss.of, reach, self.options.thresholds, full=self.options.full_search)
        taking = {node: consumer.with_scale(scale) for node, consumer in taking.items()}
        if not bool(shift.any()) and bool((scale == 1).all()):
            return None, taking
        return place.migration(shift, scale), taking

    def _ranges(self, place: Place, read: Mapping[fx.Node, Tensor], mask: Tensor | None) -> ChannelRanges:
        found: ChannelRanges | None = None
        for node, value in read.items():
            seen = ranges_of(rows_read(node, value, mask), site_of(self.names[node], "input0"))
            found = seen if found is None else found.joined(seen)
        assert found is not None, f"{place.producer} has no consumer"
        return found

    def _go_on(self, node: fx.Node, consumer: MigratedConsumer, walk: RoundedWalk) -> None:
        values = walk.values(node.args[0])  # pyright: ignore[reportArgumentType]
        walk.put(node, [consumer(value) for value in values])


def _drawn(
    batch: tuple[Tensor, ...], tokens: int, tokens_of_sample: int, rng: np.random.Generator
) -> tuple[Tensor, ...]:
    """Return samples drawn from a batch, as many as hold so many tokens, at least one; all where they are one token."""
    first = batch[0]
    count = min(len(first), max(1, tokens // tokens_of_sample) if tokens_of_sample > 1 else len(first))
    rows = torch.from_numpy(np.sort(rng.choice(len(first), size=count, replace=False)))
    return tuple(tensor[rows] for tensor in batch)
