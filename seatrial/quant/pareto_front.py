"""The sums that choices come to, with bounds and weights on them, and the front of choices that no other beats."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from typing import Literal, get_args

from seatrial.errors import BadInput, unknown_name

Quantity = Literal["latency", "sensitivity", "size", "energy"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
Pair = tuple[Quantity, Quantity]
FIELDS = {"latency": "latency_ms", "sensitivity": "sensitivity", "size": "size_bytes", "energy": "energy_mj"}

_BEST = {"latency": "fastest", "sensitivity": "least sensitive", "size": "smallest", "energy": "most frugal"}
_SAME = 1e-12
"""Relative difference that rounding explains."""
_STEP = 1e-9
"""Relative difference below which two points of a front are one."""


@dataclass(frozen=True)
class Bounds:
    """The most that each sum may be; None for no bound. Raises BadInput for what is not a number."""

    latency_ms: float | None = None
    size_bytes: float | None = None
    energy_mj: float | None = None
    sensitivity: float | None = None

    def __post_init__(self) -> None:
        for quantity in QUANTITIES:
            value = getattr(self, FIELDS[quantity])
            if value is not None and not value > -math.inf:
                raise BadInput(f"{flag(quantity)} {value}", "a number", "leave it out for no bound")

    def limits(self) -> dict[Quantity, float]:
        """Return the bounds that are set."""
        found: dict[Quantity, float | None] = {quantity: getattr(self, FIELDS[quantity]) for quantity in QUANTITIES}
        return {quantity: float(value) for quantity, value in found.items() if value is not None and value < math.inf}


NO_BOUNDS = Bounds()


@dataclass(frozen=True)
class Weights:
    """The weights of the sum of normalized costs. Raises BadInput for one below 0, or none above."""

    latency: float
    sensitivity: float
    energy: float = 0.0
    size: float = 0.0

    def __post_init__(self) -> None:
        values = [float(getattr(self, quantity)) for quantity in QUANTITIES]
        if not all(math.isfinite(value) and value >= 0 for value in values) or not any(values):
            raise BadInput(str(self), "numbers of at least 0, and one above 0", "correct the weights")


@dataclass(frozen=True)
class Solution:
    """A precision for each group and what it sums to; `energy_mj` is None where a chosen cost has none."""

    choice: Mapping[str, str]
    latency_ms: float
    sensitivity: float
    size_bytes: float
    energy_mj: float | None

    def value(self, quantity: Quantity) -> float:
        """Return one of the sums; nan for an energy that is not known."""
        value = getattr(self, FIELDS[quantity])
        return math.nan if value is None else value

    def meets(self, limits: Mapping[Quantity, float]) -> bool:
        """Tell whether the sums lie within bounds, exactly."""
        return all(self.value(quantity) <= limit for quantity, limit in limits.items())


Limits = Mapping[Quantity, float]
Best = Callable[[Quantity, Limits], Solution | None]
"""Gives the solution with the least of a quantity within limits, None where there is none."""


def flag(quantity: Quantity) -> str:
    """Return the option that bounds a quantity."""
    return f"--max-{FIELDS[quantity].replace('_', '-')}"


def unreachable(best: Best, limits: Limits) -> BadInput:
    """Return the error for bounds that no choice meets: which one, and what can be reached."""
    reached: dict[Quantity, float] = {}
    alone: dict[Quantity, float] = {}
    for quantity in limits:
        others: Limits = {other: limit for other, limit in limits.items() if other != quantity}
        least, under = best(quantity, {}), best(quantity, others)
        alone[quantity] = least.value(quantity) if least else math.inf
        if under is not None:
            reached[quantity] = under.value(quantity)
    for quantity, limit in limits.items():
        if alone[quantity] > limit:
            rest = " and ".join(f"{flag(other)} {bound:g}" for other, bound in limits.items() if other != quantity)
            within = f" with {rest}" if rest and quantity in reached else ""
            least = _rounded_up(reached.get(quantity, alone[quantity]))
            return BadInput(
                f"{flag(quantity)} {limit:g}",
                f"at least {least}, the {_BEST[quantity]} that these precisions reach{within}",
                "raise it or allow more precisions",
            )
    raises = " or ".join(f"{flag(quantity)} to {_rounded_up(value)}" for quantity, value in reached.items())
    return BadInput(
        " with ".join(f"{flag(quantity)} {limit:g}" for quantity, limit in limits.items()),
        "bounds that one choice meets; each can be met alone, but not all together",
        f"raise {raises}" if raises else "raise more than one of them",
    )


def front(best: Best, limits: Limits, points: int, of: Pair) -> list[Solution]:
    """Return up to `points` solutions of the front of two sums, ends included, sorted by the first.

    The bound on the second sum goes to the middle of the largest gap, again and again, and every point is made least
    in both sums; a gap is closed once the best point before its end is its start. Raises BadInput for fewer than 2
    points, for sums that are not two, and where no choice meets the limits.
    """
    for quantity in of:
        if quantity not in QUANTITIES:
            raise unknown_name("sum", quantity, QUANTITIES)
    if points < 2 or len(set(of)) != 2:
        raise BadInput(f"{points} points of {' and '.join(of)}", "at least 2 points of two sums", "correct it")
    first, second = of

    def corner(least: Quantity, then: Quantity, within: Limits) -> Solution | None:
        found = best(least, within)
        if found is None:
            return None
        value = found.value(least)
        # Among those as good, a hair for rounding, the least of the other.
        tied: Limits = {**within, least: min(value + _SAME * abs(value), within.get(least, math.inf))}
        return best(then, tied) or found

    start, end = corner(first, second, limits), corner(second, first, limits)
    if start is None or end is None:
        raise unreachable(best, limits)
    hair = {quantity: _STEP * max(abs(start.value(quantity)), abs(end.value(quantity))) for quantity in of}
    width = {quantity: abs(start.value(quantity) - end.value(quantity)) for quantity in of}
    if any(width[quantity] <= hair[quantity] for quantity in of):
        return [start]
    found = [start, end]
    # What is left to search: between two points, where the second sum lies above a floor.
    gaps = [(start, end, end.value(second))]
    while gaps and len(found) < points:
        gap = max(gaps, key=lambda gap: _area(gap, first, second))
        gaps.remove(gap)
        left, right, floor = gap
        middle = (floor + left.value(second)) / 2
        upper: Limits = {**limits, second: middle}
        point = corner(first, second, upper)
        if point is not None and point.value(first) < right.value(first) - hair[first]:
            found.append(point)
            gaps += [(left, point, middle), (point, right, right.value(second))]
            continue
        # The upper half is all that is left; its last point, if it has one, closes the gap from the right.
        before: Limits = {**limits, first: right.value(first) - hair[first]}
        point = corner(second, first, before)
        if point is not None and point.value(second) < left.value(second) - hair[second]:
            found.append(point)
            gaps.append((left, point, point.value(second)))
    return sorted(found, key=lambda solution: solution.value(first))


def _area(gap: tuple[Solution, Solution, float], first: Quantity, second: Quantity) -> float:
    left, right, floor = gap
    return (right.value(first) - left.value(first)) * (left.value(second) - floor)


def _rounded_up(value: float) -> str:
    """Return a bound in a few digits that is not below `value`."""
    return f"{float(Context(prec=4, rounding=ROUND_CEILING).create_decimal(Decimal(value))):.15g}"
