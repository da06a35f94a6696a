"""Which classes a targeted attack aims at."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def target_classes(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"], count: int
) -> Int64[Tensor, "batch targets"]:
    """Return the `count` classes (or all, where there are fewer) of largest logits beside the label, largest first."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, : min(count, logits.shape[1] - 1)]
