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

from seatrial.core.noise import STATED, epsilon_size
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
    stated, value = text.removesuffix(STATED), epsilon_size(text)
    if value is None or value <= 0:
        raise BadInput(f"epsilon {epsilon!r}", "a number above 0, of pictures in [0, 1]", 'write for example "2/255"')
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


_AIM = 1 - 1e-12
"""Share of epsilon that projections aim at, so that sums in float64, in whatever order, stay below it."""

_NEWTON_TURNS, _TURNS = 20, 150
"""Newton's steps take about 8 turns; where they creep, every second turn halves the bracket, to float64's end."""


class Ball(ABC):
    """The float32 pictures within epsilon of a batch of centers in one norm, and in [0, 1].

    Laws: `project` gives such a picture, exactly when measured in float64; a point inside comes back as it is, bit for
    bit; a sample's result does not depend on the rest of the batch; arguments are unchanged.
    """

    @abstractmethod
    def project(
        self, point: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return `point` (finite, of any size), moved into the ball and the box."""

    @abstractmethod
    def select(self, keep: Tensor) -> Ball:
        """Return the ball of the samples that `keep` (indices or a mask) names."""


def ball_around(norm: str, center: Float[Tensor, "batch channels height width"], epsilon: float) -> Ball:
    """Return the ball of radius `epsilon` in `norm`.

    Raises BadInput for an unknown norm, and unless the center is float32 in [0, 1].
    """
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    kinds: dict[str, type[LinfBall | L2Ball | L1Ball]] = {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball}
    return kinds[norm].around(center, epsilon)


@final
@dataclass(frozen=True)
class LinfBall(Ball):
    """The pixels' lowest and highest values: |x - center| <= epsilon holds for every float32 picture between them.

    What lies within 1e-7 of the surface counts as outside, see `inner_radius`.
    """

    lower: Float[Tensor, "batch channels height width"]
    upper: Float[Tensor, "batch channels height width"]

    @staticmethod
    def around(center: Float[Tensor, "batch channels height width"], epsilon: float) -> LinfBall:
        """Return the ball of radius `epsilon` around `center`; raises BadInput unless that is float32 in [0, 1]."""
        require_unit_box(center)
        center, radius = center.detach(), inner_radius(epsilon)
        return LinfBall((center - radius).clamp_(min=0), (center + radius).clamp_(max=1))

    def project(
        self, point: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the nearest picture inside: each pixel clipped."""
        return point.clamp(self.lower, self.upper)

    def select(self, keep: Tensor) -> LinfBall:
        """Return the ball of the samples that `keep` (indices or a mask) names."""
        return LinfBall(self.lower[keep], self.upper[keep])


@final
@dataclass(frozen=True)
class L2Ball(Ball):
    """Euclidean distance, with a part of the ball cut off by the box."""

    center: Float[Tensor, "batch channels height width"]
    epsilon: float

    @staticmethod
    def around(center: Float[Tensor, "batch channels height width"], epsilon: float) -> L2Ball:
        """Return the ball of radius `epsilon` around `center`; raises BadInput unless that is float32 in [0, 1]."""
        require_unit_box(center)
        return L2Ball(center.detach(), epsilon)

    def project(
        self, point: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the nearest picture of the ball, clipped to the box: inside both, but not always the nearest there.

        Published L2 attacks (APGD of Croce and Hein 2020, arXiv 2003.01690, among them) project in the same way.
        """
        offset = point.double() - self.center
        length = sample_sum(offset.square()).sqrt()
        inside = length <= self.epsilon
        offset.mul_((self.epsilon * _AIM / length).clamp_(max=1))
        return torch.where(inside, point, _rounded_inwards(offset, self.center)).clamp_(0, 1)

    def select(self, keep: Tensor) -> L2Ball:
        """Return the ball of the samples that `keep` (indices or a mask) names."""
        return L2Ball(self.center[keep], self.epsilon)


@final
@dataclass(frozen=True)
class L1Ball(Ball):
    """The sum of absolute differences, with a part of the ball cut off by the box."""

    center: Float[Tensor, "batch channels height width"]
    epsilon: float

    @staticmethod
    def around(center: Float[Tensor, "batch channels height width"], epsilon: float) -> L1Ball:
        """Return the ball of radius `epsilon` around `center`; raises BadInput unless that is float32 in [0, 1]."""
        require_unit_box(center)
        return L1Ball(center.detach(), epsilon)

    def project(
        self, point: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the nearest picture of ball and box together (Croce and Hein 2021, 2103.01208, proposition 2.1).

        Each difference shrinks by one amount common to the sample and is cut off at the box.
        """
        offset = point.double() - self.center
        size = offset.abs()
        room = torch.where(offset > 0, 1 - self.center.double(), self.center.double())
        # A point in the ball but not in the box is cut off alone, the amount being 0.
        inside = (sample_sum(size) <= self.epsilon) & ((point >= 0) & (point <= 1)).flatten(1).all(1)[
            :, None, None, None
        ]
        kept = torch.minimum((size - self._amount(size, room)).clamp_(min=0), room).copysign_(offset)
        return torch.where(inside, point, _rounded_inwards(kept, self.center)).clamp_(0, 1)

    def select(self, keep: Tensor) -> L1Ball:
        """Return the ball of the samples that `keep` (indices or a mask) names."""
        return L1Ball(self.center[keep], self.epsilon)

    def _amount(self, size: Tensor, room: Tensor) -> Tensor:
        """Return by how much differences of `size` shrink so that, cut off at `room`, they sum to epsilon at most.

        The sum is piecewise linear in the amount, so Newton's steps end on the exact one, at a third of the time that
        sorting its breakpoints takes (the authors' code); a bracket keeps them from leaping past it.
        """
        wanted = self.epsilon * _AIM
        low = torch.zeros_like(size[:, :1, :1, :1])
        high = size.amax((1, 2, 3), keepdim=True) if len(size) else low
        amount, answer, beyond = low, torch.full_like(low, torch.nan), size - room
        for turn in range(_TURNS):
            left, cut = (size - amount).clamp_(min=0), (beyond - amount).clamp_(min=0)
            excess = sample_sum(left - cut) - wanted
            exact = (excess.abs() <= 5e-13 * wanted) | ((excess <= 0) & (amount == 0))
            ended = torch.where(exact | (excess <= 0), amount, high)
            # A sample that has its answer keeps it, whatever others still need.
            answer = torch.where(answer.isnan() & (exact | (high - low <= 1e-15 * high)), ended, answer)
            if not bool(answer.isnan().any()):
                break
            low, high = torch.where(excess > 0, amount, low), torch.where(excess > 0, high, amount)
            slope = sample_sum((left > 0).double() - (cut > 0).double())
            newton = amount + excess / slope
            leap = (newton > low) & (newton < high) & (turn < _NEWTON_TURNS or turn % 2 == 0)
            amount = torch.where(leap, newton, (low + high) / 2)
        return torch.where(answer.isnan(), high, answer)


def sample_sum(values: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1 1 1"]:
    """Return each sample's sum, in an order that does not depend on how many samples there are.

    PyTorch splits a sum to a single number, which that of a batch of one would be, among threads.
    """
    return values.sum(3, keepdim=True).sum(2, keepdim=True).sum(1, keepdim=True)


def _rounded_inwards(offset: Float[Tensor, "*shape"], center: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return float32 points at most `offset` (float64) away from `center`, entry by entry."""
    near = (center + offset).float()
    return torch.where((near.double() - center).abs() > offset.abs(), torch.nextafter(near, center), near)


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
