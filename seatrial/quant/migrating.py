"""What quantizers that migrate share: the places that count, what is asked there, and migrations before rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.precision import Precision
from seatrial.core.predictor import Inputs
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise
from seatrial.core.recipe import Migrate, Recipe
from seatrial.core.sites import Site, op_name, operators, signature, site_of
from seatrial.numerics.observe import tensors_of, watch
from seatrial.quant.channel_ranges import ChannelRanges, ranges_of, rows_read, token_mask
from seatrial.quant.migration_places import Place, migration_places
from seatrial.quant.operator_kinds import PRODUCTS

_Key = TypeVar("_Key")
NO_PLACE = "no norm or gated projection feeds a linear operator that is rounded: nothing was migrated"


def rounded_places(
    graph: Graph, precision: Mapping[Site, Precision], *, gated: bool, values: bool = False
) -> list[Place]:
    """Return the places at which some consumer reads integers, or has a weight of integers."""
    named = operators(graph)
    names = {node: name for name, node in named.items()}
    found = []
    for place in migration_places(graph, gated=gated, values=values):
        for consumer in place.consumers:
            asked = [asked_of_input(named[consumer], names, precision), precision.get(site_of(consumer, "weight"))]
            if any(wanted is not None and wanted.float_type is None for wanted in asked):
                found.append(place)
                break
    return found


def asked_of_input(
    consumer: fx.Node, names: Mapping[fx.Node, str], precision: Mapping[Site, Precision]
) -> Precision | None:
    """Return what is asked of the tensor that an operator reads first: at its input, else where it was written.

    Operators that only move values on the way may carry the round as well.
    """
    wanted = precision.get(site_of(names[consumer], "input0"))
    for value in written_before(consumer, names):
        wanted = wanted or precision.get(site_of(names[value], "output"))
    return wanted


def ranges_read(graph: Graph, batches: Sequence[Inputs], places: Sequence[Place]) -> dict[Place, ChannelRanges]:
    """Return the channel ranges of what the consumers of each place read, without what fills sentences up.

    Raises BadInput, naming the site, where a value is not finite.
    """
    return ranges_of_readers(graph, batches, {place: place.consumers[:1] for place in places})


def ranges_of_readers(
    graph: Graph, batches: Sequence[Inputs], readers: Mapping[_Key, Sequence[str]]
) -> dict[_Key, ChannelRanges]:
    """Return for each key the channel ranges of what some linear operators or convolutions read, all together.

    Tokens that fill sentences up are left out. Raises BadInput, naming the site, where a value is not finite.
    """
    named = operators(graph)
    watched: dict[fx.Node, dict[_Key, str]] = {}
    for key, names in readers.items():
        for name in names:
            watched.setdefault(named[name].args[0], {}).setdefault(key, name)  # pyright: ignore[reportArgumentType]
    found: dict[_Key, ChannelRanges] = {}

    def see(keys: Mapping[_Key, str], mask: Tensor | None, value: Tensor) -> None:
        for key, reader in keys.items():
            seen = ranges_of(rows_read(named[reader], value, mask), site_of(reader, "input0"))
            found[key] = found[key].joined(seen) if key in found else seen

    for batch in batches:
        mask = token_mask(graph, tensors_of(graph, batch))
        watch(graph, [batch], {node: partial(see, keys, mask) for node, keys in watched.items()})
    return found


def written_before(
    consumer: fx.Node, names: Mapping[fx.Node, str], producer: fx.Node | None = None
) -> Iterator[fx.Node]:
    """Yield what an operator reads first, what that reads first, and so on, to an attention or before a producer."""
    value = consumer.args[0]
    while isinstance(value, fx.Node) and value in names and value is not producer:
        yield value
        value = value.args[0] if value.args and op_name(value) not in PRODUCTS else None


def with_migrations(
    graph: Graph,
    calibration: Sequence[Inputs],
    precision: Mapping[Site, Precision],
    migrations: Sequence[Migrate],
    grids: Quantizer,
    notes: Sequence[str] = (),
    *,
    rng: np.random.Generator,
) -> Recipe:
    """Return the recipe of these migrations and of what `grids` plans on the migrated graph."""
    migrated = realise(graph, Recipe(tuple(migrations), signature(graph)))
    rounds = grids.plan(migrated, calibration, precision, rng=rng)
    return Recipe((*migrations, *rounds.edits), signature(graph), (*notes, *rounds.notes))
