"""What quantizers that migrate share: the places that count, what is asked there, and migrations before rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import fx

from seatrial.core.graph import Graph
from seatrial.core.precision import Precision
from seatrial.core.predictor import Inputs
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise
from seatrial.core.recipe import Migrate, Recipe
from seatrial.core.sites import Site, op_name, operators, signature, site_of
from seatrial.quant.migration_places import Place, migration_places
from seatrial.quant.operator_kinds import PRODUCTS

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
