"""Search over the steps of a range: every few of them, then all around the best ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

_COARSE, _VALLEYS = 16, 2
"""Steps of the first look, and around how many of the best ones the second looks at all."""


def least_step(loss: Callable[[list[int]], Sequence[float]], steps: int, *, full: bool = False) -> tuple[int, float]:
    """Return the step from 1 to `steps` with the least loss, the highest of equal ones, and that loss.

    Every sixth of a hundred steps or so is tried, from the highest down, then all around the best two, for losses that
    are jagged; with `full`, all of them. `loss` gets several steps at once.
    """
    found: dict[int, float] = {}

    def look(asked: Iterable[int]) -> list[int]:
        new = [step for step in dict.fromkeys(asked) if step not in found and 1 <= step <= steps]
        if new:
            found.update(zip(new, loss(new), strict=True))
        return sorted(found, key=lambda step: (found[step], -step))

    stride = 1 if full else max(1, steps // _COARSE)
    best = look(range(steps, 0, -stride))
    best = look(step + move for step in best[:_VALLEYS] for move in range(1 - stride, stride))
    return best[0], found[best[0]]
