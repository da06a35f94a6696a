"""The set of pictures that an adversary may reach, exact in float32."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
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


class Ball(ABC):
    """The pictures within epsilon of given ones and in [0, 1].

    Laws: `project` gives such a picture, and a point inside comes back as it is; each row depends on its own alone.
    """

    @abstractmethod
    def project(self, point: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Return `point` [batch, channels, height, width], moved into the ball and the box."""

    @abstractmethod
    def select(self, keep: Tensor) -> Ball:
        """Return the ball of the samples that `keep` (indices or a mask) names."""


def ball_around(norm: str, center: Float[Tensor, "batch channels height width"], epsilon: float) -> Ball:
    """Return the ball of radius `epsilon`; raises BadInput unless the center is float32 in [0, 1]."""
    return {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball}[norm].around(center, epsilon)


@final
@dataclass(frozen=True)
class LinfBall(Ball):
    """The pixels' lowest and highest values: |x - center| <= epsilon holds for every float32 picture between them."""

    lower: Float[Tensor, "batch channels height width"]
    upper: Float[Tensor, "batch channels height width"]

    @staticmethod
    def around(center: Float[Tensor, "batch channels height width"], epsilon: float) -> LinfBall:
        """Return the ball of radius `epsilon` around `center`; raises BadInput unless that is float32 in [0, 1]."""
        require_unit_box(center)
        center, radius = center.detach(), inner_radius(epsilon)
        return LinfBall((center - radius).clamp_(min=0), (center + radius).clamp_(max=1))

    def project(self, point: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Return `point` clipped to the nearest picture inside."""
        return point.clamp(self.lower, self.upper)

    def select(self, keep: Tensor) -> LinfBall:
        """Return the ball of the samples that `keep` (indices or a mask) names."""
        return LinfBall(self.lower[keep], self.upper[keep])


@final
@dataclass(frozen=True)
class L2Ball(Ball):
    """Euclidean distance; `radius` is smaller than epsilon by what rounding to float32 can add."""

    center: Float[Tensor, "batch channels height width"]
    radius: float

    @staticmethod
    def around(center: Float[Tensor, "batch channels height width"], epsilon: float) -> L2Ball:
        """Return the ball of radius `epsilon` around `center`; raises BadInput unless that is float32 in [0, 1]."""
        require_unit_box(center)
        return L2Ball(center.detach(), _shrunk(epsilon, math.sqrt(math.prod(center.shape[1:]))))

    def project(self, point: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Return `point` scaled towards the center, then clipped to the box: inside both, not always the nearest."""
        offset = point - self.center
        length = torch.linalg.vector_norm(offset.flatten(1), dim=1, dtype=torch.float64)
        scale = (self.radius / length.clamp(min=1e-30)).clamp(max=1).to(torch.float32)
        inside = (scale >= 1)[:, None, None, None]
        return torch.where(inside, point, self.center + offset * scale[:, None, None, None]).clamp_(0, 1)

    def select(self, keep: Tensor) -> L2Ball:
        """Return the ball of the samples that `keep` (indices or a mask) names."""
        return L2Ball(self.center[keep], self.radius)


@final
@dataclass(frozen=True)
class L1Ball(Ball):
    """The sum of absolute differences; `radius` is smaller than epsilon by what rounding to float32 can add."""

    center: Float[Tensor, "batch channels height width"]
    radius: float

    @staticmethod
    def around(center: Float[Tensor, "batch channels height width"], epsilon: float) -> L1Ball:
        """Return the ball of radius `epsilon` around `center`; raises BadInput unless that is float32 in [0, 1]."""
        require_unit_box(center)
        return L1Ball(center.detach(), _shrunk(epsilon, math.prod(center.shape[1:])))

    def project(self, point: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Return the nearest picture of ball and box together (Croce and Hein 2021, proposition 2.1).

        Each difference shrinks by one common amount and is cut off at the box; the amount is found by Newton steps
        kept between bounds, in float64.
        """
        offset = (point - self.center).flatten(1).double()
        size, center = offset.abs(), self.center.flatten(1).double()
        room = torch.where(offset > 0, 1 - center, center)
        lower, upper = torch.zeros(len(size), 1, dtype=torch.float64), size.amax(1, keepdim=True)
        amount = lower.clone()
        for _ in range(60):
            shrunk = size - amount
            excess = shrunk.clamp(min=0).minimum(room).sum(1, keepdim=True) - self.radius
            slope = ((shrunk > 0) & (shrunk < room)).sum(1, keepdim=True)
            lower, upper = torch.where(excess > 0, amount, lower), torch.where(excess > 0, upper, amount)
            step = amount + excess / slope.clamp(min=1)
            good = (step > lower) & (step < upper) & (slope > 0)
            amount = torch.where(good, step, (lower + upper) / 2)
        kept = (size - upper).clamp(min=0).minimum(room)
        moved = self.center.flatten(1) + (offset.sign() * kept).to(torch.float32)
        within = (size.minimum(room).sum(1) <= self.radius)[:, None]
        return torch.where(within, point.flatten(1), moved).clamp_(0, 1).view_as(point)

    def select(self, keep: Tensor) -> L1Ball:
        """Return the ball of the samples that `keep` (indices or a mask) names."""
        return L1Ball(self.center[keep], self.radius)


def _shrunk(epsilon: float, entries: float) -> float:
    """Return the radius that, with every entry rounded to float32, stays within epsilon."""
    return max(0.0, epsilon * (1 - 1e-7) - _ROUNDING * entries)


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
