"""AugMix: pictures mixed from chains of simple operations, and answers that agree on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from seatrial.errors import BadInput
from seatrial.train.augmix_operations import OPERATIONS
from seatrial.train.objective import Objective
from seatrial.train.shift_flip import ShiftFlip, unit


@final
@dataclass(frozen=True, kw_only=True)
class AugMix(Objective):
    """Cross entropy on clean pictures and agreement with two mixtures of each (Hendrycks et al. 2020, 1912.02781).

    A mixture is m * (sum of `width` chains, weighted by a Dirichlet draw) + (1 - m) * picture with m from Beta(1, 1);
    a chain is 1 to `depth` operations, each of a strength drawn up to `severity` of 10 (algorithm 1). The loss adds
    `agreement` times the Jensen-Shannon divergence of the three answers (eq. 3 and 4); with 0, the network trains on
    one mixture alone. `augment` acts first. Raises BadInput for options out of range.
    Departures: operations act on batches, not on one picture at a time; rotations and shears may differ from Pillow's
    by a level.
    """

    width: int = 3
    depth: int = 3
    severity: float = 3.0
    agreement: float = 12.0
    augment: ShiftFlip | None = None

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 1:
            raise BadInput(f"{self.width} chains of {self.depth}", "at least 1 of both", "the paper takes 3 and 3")
        if not (0 < self.severity <= 10 and self.agreement >= 0):
            came = f"severity {self.severity}, agreement {self.agreement}"
            raise BadInput(came, "a severity above 0 and up to 10, an agreement from 0", "the paper takes 3 and 12")

    def mixed(
        self, pictures: Float[Tensor, "batch 3 height width"], rng: np.random.Generator
    ) -> Float[Tensor, "batch 3 height width"]:
        """Return one mixture of each picture, all in [0, 1]."""
        count = len(pictures)
        weights = torch.from_numpy(rng.dirichlet(np.ones(self.width), count).astype(np.float32))
        share = torch.from_numpy(rng.beta(1, 1, (count, 1, 1, 1)).astype(np.float32))
        chains = (pictures * 255).round().repeat(self.width, 1, 1, 1)
        lengths = rng.integers(1, self.depth + 1, len(chains))
        for step in range(self.depth):
            kinds = rng.integers(0, len(OPERATIONS), len(chains))
            strengths = torch.from_numpy(rng.uniform(0.1, max(0.1, self.severity), len(chains)).astype(np.float32))
            signs = torch.from_numpy(rng.choice(np.array([-1, 1], dtype=np.float32), len(chains)))
            for i, operation in enumerate(OPERATIONS):
                rows = torch.from_numpy(np.flatnonzero((kinds == i) & (lengths > step)))
                if len(rows):
                    chains[rows] = operation(chains[rows], strengths[rows], signs[rows])
        chains = chains.reshape(self.width, count, *pictures.shape[1:]).div_(255)
        mixture = torch.einsum("wbchv,bw->bchv", chains, weights)
        return ((1 - share) * pictures + share * mixture).clamp_(0, 1)

    def loss(
        self,
        module: nn.Module,
        inputs: Float[Tensor, "batch 3 height width"],
        labels: Int64[Tensor, " batch"],
        *,
        rng: np.random.Generator,
    ) -> Float[Tensor, ""]:
        """Return the mean loss of a batch; pictures are uint8, or float in [0, 1]."""
        shown = unit(inputs) if self.augment is None else self.augment(inputs, rng)
        if not self.agreement:
            return F.cross_entropy(module(self.mixed(shown, rng)), labels)
        twins = self.mixed(shown.repeat(2, 1, 1, 1), rng)
        answers = module(torch.cat([shown, twins])).chunk(3)
        return F.cross_entropy(answers[0], labels) + self.agreement * divergence(answers).mean()


def divergence(logits: tuple[Tensor, ...]) -> Float[Tensor, " batch"]:
    """Return the Jensen-Shannon divergence between the answers to each picture, in nats."""
    logs = torch.stack([part.log_softmax(1) for part in logits])
    middle = logs.exp().mean(0).clamp(1e-7, 1).log()
    return (logs.exp() * (logs - middle)).sum(2).mean(0)
