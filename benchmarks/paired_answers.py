"""Answers of networks to the same samples, kept in files, and what one network loses against another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seatrial.core.chance import generator

RESAMPLES = 10_000


@dataclass(frozen=True, eq=False)
class Answers:
    """What one network made of each text: right or not, or summed losses and tokens."""

    right: np.ndarray
    loss: np.ndarray
    tokens: np.ndarray


def kept(file: Path, make: Callable[[], Answers]) -> Answers:
    """Return the answers in a file, made and written where they are not there yet."""
    if not file.is_file():
        start = time.monotonic()
        found = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, right=found.right, loss=found.loss, tokens=found.tokens)
        print(f"{file.stem}: {time.monotonic() - start:.0f} s", flush=True)
    held = np.load(file)
    return Answers(held["right"], held["loss"], held["tokens"])


def value(seeds: Sequence[Answers], drawn: np.ndarray | None = None) -> np.ndarray:
    """Return accuracy, or the mean loss of a token, over seeds; one for each draw of texts."""
    if len(seeds[0].right):
        each = np.mean([one.right for one in seeds], axis=0)
        return each.mean() if drawn is None else drawn @ each / len(each)
    loss, tokens = np.mean([one.loss for one in seeds], axis=0), seeds[0].tokens
    return loss.sum() / tokens.sum() if drawn is None else (drawn @ loss) / (drawn @ tokens)


def against(before: Sequence[Answers], after: Sequence[Answers]) -> tuple[float, float, float]:
    """Return the difference in points, or the ratio of perplexities, with its 95 % interval over texts."""
    count = len(before[0].right) or len(before[0].loss)
    rng = generator(0, "intervals")
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float32)
    moved = value(after, drawn) - value(before, drawn)
    middle = value(after) - value(before)
    ends = np.quantile(moved, (0.025, 0.975))
    shown = (lambda x: 100 * x) if len(before[0].right) else np.exp
    return float(shown(middle)), float(shown(ends[0])), float(shown(ends[1]))


def figure(seeds: Sequence[Answers], accuracy: bool) -> float:
    """Return accuracy in percent, or perplexity."""
    return float(100 * value(seeds) if accuracy else np.exp(value(seeds)))
