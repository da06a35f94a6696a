"""How much the errors at the output of a block matter, without those that no grid avoids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

Kept = Literal["errors", "terms", "above-step", "all"]


@final
@dataclass(frozen=True)
class BlockError:
    """Mean over samples of the sum of M G^2 E^2: E the error of a block's output, G the gradient of the loss there.

    M leaves the bottom of the errors out. `errors`: only the largest `share` of |E| in each sample counts; `terms`:
    the largest `share` of G^2 E^2; `above-step`: errors above half a `step`, the output's own rounding step; `all`:
    everything (the plain blockwise Fisher error).

    Source: Ding et al. 2022 (APQ-ViT), section 3.2. Departures: the paper's formula is not public; this is rebuilt from
    what it is said to do.
    """

    kept: Kept = "errors"
    share: float = 0.3
    weighted: bool = True
    """False takes G as 1: no gradients are needed."""

    def of(
        self, output: Tensor, wanted: Tensor, gradient: Tensor | None, step: float = 0.0, channels: int | None = None
    ) -> float:
        """Return the error of `output`, all [samples, ...]; `step` counts for `above-step` alone.

        Without a gradient, G is 1. With `channels`, an axis, the mean of each channel's errors does not count: a
        corrected bias takes it away.
        """
        error = output - wanted
        if channels is not None:
            error -= mean_of_channels(error, channels)
        error = error.flatten(1)
        terms = (error * (1 if gradient is None else gradient.flatten(1))).square_()
        if self.kept == "above-step":
            terms *= error.abs_() > step / 2
        elif self.kept != "all":
            judged = error.abs_() if self.kept == "errors" else terms
            first = terms.shape[1] - max(1, round(self.share * terms.shape[1]))
            # NumPy, because PyTorch takes ten times as long.
            least = np.partition(judged.numpy(), first, axis=1)[:, first]
            terms = terms * (judged >= torch.from_numpy(least)[:, None])
        return float(terms.sum(dtype=torch.float64)) / len(terms)


def mean_of_channels(values: Tensor, axis: int) -> Tensor:
    """Return the mean over all axes but one, in a shape that broadcasts."""
    return values.mean([other for other in range(values.ndim) if other != axis % values.ndim], keepdim=True)
