"""The threshold of OS+: how far the widest channels are scaled down, chosen by a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_COARSE, _VALLEYS = 16, 2
"""Thresholds of the first look, and around how many of the best ones the second looks at all."""

Loss = Callable[[Float[Tensor, "tried channels"]], Sequence[float]]
"""The loss of each of several scales."""


def scales_of(
    reach: Float[Tensor, " channels"], steps: Sequence[int], thresholds: int
) -> Float[Tensor, "tried channels"]:
    """Return s_j(t) = max(1, reach_j / t) for t = step / `thresholds` of the widest reach, for each step.

    reach: the largest distance of each channel from its shift. Source: Wei et al. 2023, eq. 8.
    """
    levels = reach.max() * torch.tensor(list(steps), dtype=reach.dtype, device=reach.device) / thresholds
    return (reach / levels[:, None]).clamp(min=1)


def best_scale(
    loss: Loss, reach: Float[Tensor, " channels"], thresholds: int, *, full: bool = False
) -> tuple[Float[Tensor, " channels"], float]:
    """Return the scale of the threshold with the least loss, the widest of equal ones, and that loss.

    Every sixth threshold or so is tried, then all around the best two, since the loss is jagged where outliers are
    far above all else; with `full`, all of them.
    """
    found: dict[int, float] = {}

    def look(steps: Iterable[int]) -> list[int]:
        new = [step for step in dict.fromkeys(steps) if step not in found and 1 <= step <= thresholds]
        if new:
            found.update(zip(new, loss(scales_of(reach, new, thresholds)), strict=True))
        return sorted(found, key=lambda step: (found[step], -step))

    stride = 1 if full else max(1, thresholds // _COARSE)
    best = look(range(thresholds, 0, -stride))
    best = look(step + move for step in best[:_VALLEYS] for move in range(1 - stride, stride))
    return scales_of(reach, best[:1], thresholds)[0], found[best[0]]
