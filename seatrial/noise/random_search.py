"""The loop of the Square attack: one proposal a query, kept where it lowers the margin."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from seatrial.core.predictor import Predictor
from seatrial.noise.margin import margin

_HALVINGS = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])
"""Iterations, of 10,000, after which the share of pixels that a square covers is halved (the authors' code)."""


def areas(share: float, pixels: int, proposals: int) -> Float[np.ndarray, " proposals"]:
    """Return how many of `pixels` the square of each proposal covers, the schedule stretched to `proposals`."""
    progress = np.arange(proposals) * 10_000 // max(proposals, 1)
    return share * pixels / 2.0 ** np.searchsorted(_HALVINGS, progress, side="left")


class RandomSearch(ABC):
    """The random search of the samples that still stand (Andriushchenko et al. 2020, algorithm 1).

    They occupy the first rows of every array: a sample that falls is replaced by the last one standing, so that the
    rest of the batch needs no copy and a query costs little beside its forward pass. A subclass names its arrays in
    `arrays`; all draws are made before the first query, so a sample's stream never depends on when others fall.
    """

    def __init__(self, best: Float[Tensor, "batch channels height width"], labels: Tensor, proposals: int) -> None:
        self.arrays = {"best": best, "labels": labels.clone(), "origin": torch.arange(len(best), device=best.device)}
        self._proposals = proposals

    @abstractmethod
    def propose(self, step: int) -> None:
        """Change the best point of every sample, and remember what it was."""

    @abstractmethod
    def take_back(self, rejected: Int64[Tensor, " rows"]) -> None:
        """Put back what `propose` changed in these rows."""

    def run(self, predictor: Predictor) -> tuple[Float[Tensor, "batch 3 height width"], Int64[np.ndarray, " batch"]]:
        """Return the best points, in the order given, and the queries that each took."""
        found = torch.empty_like(self.arrays["best"])
        used = np.full(len(found), self._proposals + 1, dtype=np.int64)
        self.arrays["least"] = self._margins(predictor)
        for step in range(self._proposals):
            self._retire(step + 1, found, used)
            if not len(self.arrays["least"]):
                break
            self.propose(step)
            now = self._margins(predictor)
            rejected = ~(now < self.arrays["least"])  # written so that NaN is rejected
            self.take_back(rejected.nonzero()[:, 0])
            self.arrays["least"] = torch.where(rejected, self.arrays["least"], now)
        found[self.arrays["origin"]] = self.arrays["best"]
        return found, used

    def _margins(self, predictor: Predictor) -> Tensor:
        return margin(predictor(self.arrays["best"]), self.arrays["labels"])

    def _retire(self, query: int, found: Tensor, used: np.ndarray) -> None:
        """Take the samples that have fallen out of the arrays."""
        fallen = self.arrays["least"] < 0
        if not bool(fallen.any()):
            return
        gone = self.arrays["origin"][fallen]
        found[gone] = self.arrays["best"][fallen]
        used[gone.cpu().numpy()] = query
        left = int((~fallen).sum())
        holes = fallen[:left].nonzero()[:, 0]
        movers = (~fallen[left:]).nonzero()[:, 0] + left
        for name, array in self.arrays.items():
            array[holes] = array[movers]
            self.arrays[name] = array[:left]
