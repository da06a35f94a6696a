"""The threshold of OS+: how far the widest channels are scaled down, chosen by a loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from seatrial.quant.coarse_to_fine import least_step

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

    From coarse to fine, since the loss is jagged where outliers are far above all else; with `full`, all of them.
    """
    step, least = least_step(lambda steps: loss(scales_of(reach, steps, thresholds)), thresholds, full=full)
    return scales_of(reach, [step], thresholds)[0], least
