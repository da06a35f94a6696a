"""A quantizer looks at a graph and decides grids; it changes nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from seatrial.core.graph import Graph
from seatrial.core.precision import Precision
from seatrial.core.predictor import Inputs
from seatrial.core.recipe import Recipe
from seatrial.core.sites import Site


class Quantizer(ABC):
    """Precision is asked for, grids are decided.

    Laws: the graph and its parameters are unchanged afterwards; the recipe rounds exactly the sites asked for or
    notes which it left out and why; equal arguments give equal recipes; every grid can hold zero.
    """

    @abstractmethod
    def plan(
        self,
        graph: Graph,
        calibration: Sequence[Inputs],
        precision: Mapping[Site, Precision],
        *,
        rng: np.random.Generator,
    ) -> Recipe:
        """Return the recipe for `graph`, decided on batches of calibration inputs."""
