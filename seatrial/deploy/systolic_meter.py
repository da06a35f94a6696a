"""The systolic model as a meter: no clock, sums over operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

from seatrial.core.graph import Graph
from seatrial.core.realise import realise
from seatrial.core.recipe import Recipe, Round
from seatrial.core.search import Reading
from seatrial.deploy.systolic import Systolic, Workload, bits_of

_CERTAIN = 1_000_000
"""Rounds of a reading that no further measurement would change."""


@dataclass(eq=False)
class SystolicMeter:
    """Tells what recipes of one graph cost on a modeled array; everything it tells is simulated, without any error.

    `size_bytes` of a reading are the weights as the chip stores them.
    """

    target: Systolic
    graph: Graph
    reference: Recipe
    batch: int = 1
    _known_ms: float = field(default=0.0, repr=False)

    def __enter__(self) -> SystolicMeter:
        # What migrations add (the way back on residual branches) is work too; all recipes of one search share it.
        edits = tuple(edit for edit in self.reference.edits if not isinstance(edit, Round))
        self._work = Workload.of(realise(self.graph, replace(self.reference, edits=edits)), self.batch)
        self._known_ms = self._cost(self.reference)[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def time(self, recipes: Sequence[Recipe], *, rounds: int | None = None) -> list[Reading]:
        """Return one reading a recipe."""
        return [self._reading(recipe) for recipe in recipes]

    def _reading(self, recipe: Recipe) -> Reading:
        latency_ms, energy_mj, size_bytes = self._cost(recipe)
        return Reading(latency_ms, latency_ms / self._known_ms, 0.0, _CERTAIN, size_bytes, energy_mj)

    def _cost(self, recipe: Recipe) -> tuple[float, float, int]:
        costs = self.target.costs(self._work, bits_of(realise(self.graph, recipe))).values()
        return (
            sum(cost.latency_ms for cost in costs),
            sum(cost.energy_mj for cost in costs),
            sum(cost.weight_bytes for cost in costs),
        )
