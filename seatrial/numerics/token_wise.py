"""Token-wise clipping: the range that leaves out what only a few tokens reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from seatrial.core.precision import Precision
from seatrial.errors import BadInput
from seatrial.numerics.ranges import Observed, Range

_DEPTH, _DEEPER = 0.05, 0.1
"""How large a ratio is tried from 8 bits on, and below."""


@final
@dataclass(frozen=True)
class TokenWise(Range):
    """Clip at a quantile of the tokens' largest values, and of their smallest.

    Each token has a largest and a smallest value. The range reaches up to the highest of the largest ones when the
    `ratio` of tokens with the highest are left out, and down likewise. Without a ratio, a quantizer tries 0, `step`,
    2 `step` and so on, below 0.05 from 8 bits on and below 0.1 for fewer, one ratio for the whole network, and takes
    the one whose answers are nearest to the float network's; `choose` by itself then clips nothing. Values without
    tokens (feature maps, heads and probabilities of attention) keep their lowest and highest value.
    Raises BadInput for ratios and steps outside of 0 to 0.5.

    Source: Wei et al. 2022 (Outlier Suppression), section 4.2, the coarse stage; how far and in which steps, and one
    ratio for all tensors: the code of Wei et al. 2023 (OS+).
    Departures: no fine stage, which learns each scale by gradient descent; quantiles over the tokens of all batches,
    not an average of each batch's; queries, keys and values are split into heads here and count as without tokens.
    """

    ratio: float | None = None
    step: float = 0.005
    needs_tokens: bool = True

    def __post_init__(self) -> None:
        if not 0 <= (self.ratio or 0.0) < 0.5 or not 0 < self.step < 0.5:
            came = f"a ratio of {self.ratio} and steps of {self.step}"
            raise BadInput(came, "from 0 to 0.5, steps above 0", "0.05 is a large ratio")

    def tried(self, bits: int) -> Sequence[Range]:
        if self.ratio is not None:
            return (self,)
        count = math.ceil((_DEPTH if bits >= 8 else _DEEPER) / self.step - 1e-9)
        return tuple(replace(self, ratio=index * self.step) for index in range(count))

    def choose(self, observed: Observed, precision: Precision) -> tuple[float, float]:
        low, high = observed.low_high
        if not self.ratio or not observed.tokens:
            return low, high
        lows, highs = np.concatenate(observed.tokens, axis=1)
        last = len(lows) - 1
        # Of the tokens at and beyond the quantile, the first: as many are left out at both ends.
        left_out = math.ceil(self.ratio * last - 1e-9)
        return float(np.partition(lows, left_out)[left_out]), float(
            np.partition(highs, last - left_out)[last - left_out]
        )
