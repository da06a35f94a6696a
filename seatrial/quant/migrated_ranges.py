"""What migrations did to the channels they touch: ranges of what their consumers read, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seatrial.core.graph import Graph
from seatrial.core.predictor import Inputs
from seatrial.core.realise import realise
from seatrial.core.recipe import Migrate, Recipe
from seatrial.core.sites import Site, operators, site_of
from seatrial.quant.channel_ranges import ChannelRanges
from seatrial.quant.migrating import ranges_of_readers


@dataclass(frozen=True, eq=False)
class MigratedRanges:
    """The channels that the consumers at one place read, in the float network and in the migrated one."""

    place: Site
    """The output of the producer."""
    before: ChannelRanges
    after: ChannelRanges


def migrated_ranges(graph: Graph, recipe: Recipe, batches: Sequence[Inputs]) -> list[MigratedRanges]:
    """Return the ranges over some batches at each place that a recipe migrates, in order of execution.

    Looked at is what the consumers of a place read, all together: that tensor gets the grid. Behind a gated projection
    it is the product, and elsewhere what the producer writes. Nothing is rounded, and tokens that fill sentences up are
    left out. The network runs twice over the batches and keeps no tensor of them. Raises BadInput where a value is not
    finite.
    """
    edits = tuple(edit for edit in recipe.edits if isinstance(edit, Migrate))
    consumers: dict[str, tuple[str, ...]] = {}
    for edit in edits:
        named = (site.operator for site in edit.consumers)
        known = consumers.get(edit.producer.operator, ())
        consumers[edit.producer.operator] = tuple(dict.fromkeys((*known, *named)))
    if not edits:
        return []
    before = ranges_of_readers(graph, batches, consumers)
    after = ranges_of_readers(realise(graph, Recipe(edits, recipe.signature)), batches, consumers)
    order = [name for name in operators(graph) if name in consumers]
    return [MigratedRanges(site_of(name, "output"), before[name], after[name]) for name in order]
