"""A search over recipes: a meter tells what they cost on the chip, the search finds better and better ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from seatrial.core.graph import Graph
from seatrial.core.predictor import Inputs
from seatrial.core.recipe import Recipe
from seatrial.errors import SeatrialError


class CannotRun(SeatrialError):
    """The target cannot run a recipe: its process ended, or its runtime refused the file."""


@dataclass(frozen=True)
class Reading:
    """What a meter told of one recipe, against the meter's reference.

    `latency_ms` is of one call; `ratio` the median of its time over the reference's in alternated rounds, `error` the
    standard error of that ratio, as a fraction of it. `energy_mj` is None where the machine counts no energy.
    """

    latency_ms: float
    ratio: float
    error: float
    rounds: int
    size_bytes: int
    energy_mj: float | None = None


class Meter(Protocol):
    """Tells the cost of recipes on one target; a recorded table replays as one in tests."""

    def time(self, recipes: Sequence[Recipe], *, rounds: int | None = None) -> Sequence[Reading]:
        """Return one reading a recipe, in order; `rounds` asks for more or fewer alternations than usual.

        Raises CannotRun for a recipe that the target does not run.
        """
        ...


@dataclass(frozen=True)
class Budget:
    """What a search may use and must keep: seconds of its own time, and upper bounds on what a recipe costs.

    None stands for no bound. `sensitivity` is in nats of estimated divergence from the float network.
    """

    seconds: float = 300.0
    latency_ms: float | None = None
    size_bytes: float | None = None
    energy_mj: float | None = None
    sensitivity: float | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """One recipe that a search has measured: its precision by operator group, and what it cost."""

    choice: Mapping[str, str]
    recipe: Recipe
    reading: Reading
    sensitivity: float
    step: str
    """How the search came to it: `uniform`, `flip`, `validation`, `program` (integer program) or `polish`."""
    notes: tuple[str, ...] = field(default=())


class Search(ABC):
    """Decides precisions by measurement.

    Laws: every recipe that is yielded was measured by the meter; the best of them gets no slower; the graph stays as
    it was.
    """

    @abstractmethod
    def run(
        self, graph: Graph, calibration: Sequence[Inputs], budget: Budget, *, rng: np.random.Generator
    ) -> Iterator[Found]:
        """Yield what was measured, one after another, until the budget's seconds are over or nothing is left to try."""
