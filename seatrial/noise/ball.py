"""The set of pictures that an adversary may reach, exact in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seatrial.errors import BadInput, unknown_name

Norm = Literal["linf", "l2", "l1"]
NORMS: tuple[Norm, ...] = get_args(Norm)
_STATED_ENTRIES = 3 * 224 * 224


def budget(norm: str, epsilon: float | str, shape: Sequence[int] | None = None) -> float:
    """Return `epsilon` as a number in the scale [0, 1] for pictures of `shape` (channels, height, width).

    Text may be a fraction of the scale such as "2/255". Text that ends in "@224" is stated for 3x224x224 pictures and
    scaled so that the mean change (L1) and the root mean square change (L2) per entry are the same at other sizes;
    L-inf needs no scaling. Raises BadInput for an unknown norm, for an epsilon that is not above 0, for an L-inf one
    above 1, and, with `shape`, for an L1 or L2 one above the diameter of the box. Source: RobustMQ's magnitudes are
    for 3x224x224 (RobustART's driver).
    """
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    text = str(epsilon)
    stated = text.removesuffix("@224")
    try:
        above, _, below = stated.partition("/")
        value = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    wanted = "a number above 0, of pictures in [0, 1]"
    if not 0 < value < math.inf:
        raise BadInput(f"epsilon {epsilon!r}", wanted, 'write for example "2/255"')
    if norm == "linf":
        if value > 1:
            likely = (
                f'"{stated}/255" is meant, perhaps'
                if "/" not in stated and value <= 255
                else 'write for example "2/255"'
            )
            raise BadInput(f"L-inf epsilon {epsilon!r}", "at most 1, because pictures lie in [0, 1]", likely)
        return value
    if shape is None:
        return value
    entries = math.prod(shape)
    if stated != text:
        share = entries / _STATED_ENTRIES
        value *= math.sqrt(share) if norm == "l2" else share
    diameter = math.sqrt(entries) if norm == "l2" else float(entries)
    if value > diameter:
        raise BadInput(
            f"{norm} epsilon {epsilon!r} for {entries} entries",
            f"at most {diameter:g}, the diameter of the box [0, 1]",
            "lower it: every picture is within reach",
        )
    return value


_ROUNDING = 2.0**-25
"""The most that rounding to float32 moves a number up to 1."""


@final
@dataclass(frozen=True)
class LinfBall:
    """The pixels' lowest and highest values: |x - center| <= epsilon holds for every float32 picture between them."""

    lower: Float[Tensor, "batch channels height width"]
    upper: Float[Tensor, "batch channels height width"]

    @staticmethod
    def around(center: Float[Tensor, "batch channels height width"], epsilon: float) -> LinfBall:
        """Return the ball of radius `epsilon` around `center`; raises BadInput unless that is float32 in [0, 1]."""
        require_unit_box(center)
        center, radius = center.detach(), inner_radius(epsilon)
        return LinfBall((center - radius).clamp_(min=0), (center + radius).clamp_(max=1))

    def select(self, keep: Tensor) -> LinfBall:
        """Return the ball of the samples that `keep` (indices or a mask) names."""
        return LinfBall(self.lower[keep], self.upper[keep])


def inner_radius(epsilon: float) -> float:
    """Return the float32 radius r for which |(x + r) - x| <= `epsilon`, in float32 and exactly, whatever x in [0, 1].

    Clipping a rounded difference at epsilon does not ensure that. The radius is smaller than epsilon by less than
    1e-7, and 0 for an epsilon below that.
    """
    return _below(max(0.0, _below(epsilon) - _ROUNDING))


def require_unit_box(pictures: Tensor) -> None:
    """Raise BadInput unless `pictures` are float32 [batch, channels, height, width] in [0, 1]."""
    if pictures.ndim != 4 or pictures.dtype != torch.float32:
        raise BadInput(
            f"a {pictures.dtype} tensor of shape {tuple(pictures.shape)}",
            "float32 [batch, channels, height, width]",
            "convert the pictures before the attack",
        )
    if pictures.numel():
        least, most = (float(end) for end in torch.aminmax(pictures.detach()))
        if not 0 <= least <= most <= 1:  # written so that NaN is refused
            raise BadInput("pixels outside [0, 1], or NaN", "pictures in [0, 1]", "divide uint8 pixels by 255")


def _below(value: float) -> float:
    """Return the largest float32 that is not above `value`."""
    near = np.float32(value)
    return float(near if float(near) <= value else np.nextafter(near, np.float32(0)))
