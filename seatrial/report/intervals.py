"""Intervals as charts draw them: lines around points, and axes that hold them."""

from __future__ import annotations

import math
from collections.abc import Sequence

Reach = tuple[float | None, float | None, float | None]
"""A figure with the low and the high end of its interval; None where it is absent."""


def whiskers(reaches: Sequence[Reach], color: str, *, scale: float = 1.0, thickness: float = 1.4) -> dict[str, object]:
    """Return plotly's error bars of some points, times `scale`; of no length where an end is absent."""
    above, below = [], []
    for value, low, high in reaches:
        above.append(0.0 if value is None or high is None else scale * max(0.0, high - value))
        below.append(0.0 if value is None or low is None else scale * max(0.0, value - low))
    look = {"color": color, "thickness": thickness, "width": 0}
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **look}


def ends(reaches: Sequence[Reach], *, scale: float = 1.0) -> tuple[float, float]:
    """Return the ends of an axis that holds every figure and interval times `scale`, rounded outwards.

    A little room beyond each end keeps a point that lies on it from being cut.
    """
    held = [scale * x for reach in reaches for x in reach if x is not None]
    low, high = min(held, default=0.0), max(held, default=scale)
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-3 * scale))) / 2
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    room = 0.02 * (high - low or scale)
    return low - room, high + room
