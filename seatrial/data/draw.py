"""Seeded draws of samples that do not depend on order, sharding or library versions."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol, Self, TypeVar

from seatrial.core.sample import Dataset
from seatrial.errors import BadInput

QUARTER_BELOW = 1024
"""Below this many samples at most a quarter of them calibrates."""


class Divisible(Dataset, Protocol):
    """A data set of which parts can be taken."""

    @property
    def bad(self) -> tuple[tuple[str, str], ...]: ...
    def subset(self, indices: Iterable[int]) -> Self: ...
    def without(self, ids: Iterable[str]) -> Self: ...


D = TypeVar("D", bound=Divisible)


def limit(dataset: D, n: int, *, seed: int) -> D:
    """Return `n` samples of `dataset` (all, where it has no more), drawn balanced over its classes.

    Laws: two classes differ by at most one sample unless the smaller one is used up; a smaller `n` gives a subset of
    what a larger one gives. Raises BadInput where `n` is not positive.
    """
    if n < 1:
        raise BadInput(f"a limit of {n} samples", "at least 1", "give --limit a positive number, or leave it out")
    if n >= len(dataset):
        return dataset
    members: dict[int, list[int]] = defaultdict(list)
    ids, labels = dataset.ids, dataset.labels
    for index in ranked(ids, seed, "limit"):
        members[labels[index]].append(index)
    # Round by round, one of each class; within a round classes come in an order of their own, else the lowest labels
    # would always be the ones with a sample more.
    rounds = sorted(
        (turn, _rank(seed, "limit-class", str(label)), index)
        for label, chosen in members.items()
        for turn, index in enumerate(chosen)
    )
    return dataset.subset(index for _, _, index in rounds[:n])


def split_calibration(dataset: D, n: int, *, seed: int) -> tuple[D, D]:
    """Return (calibration, evaluation): `n` samples drawn at random, and all others.

    Of fewer than 1,024 samples at most a quarter is drawn. The draw is not balanced, so that the samples left keep
    the classes' shares. Raises BadInput where `n` is negative or would leave nothing to evaluate.
    """
    if n < 0:
        raise BadInput(f"{n} calibration samples", "0 or more", "give --calibration-samples a positive number")
    total = len(dataset)
    n = min(n, total // 4) if total < QUARTER_BELOW else n
    if n >= total:
        raise BadInput(
            f"{n} calibration samples of {total}",
            "samples left for the evaluation",
            "lower --calibration-samples or give other data with --calibration",
        )
    order = ranked(dataset.ids, seed, "calibration")
    return dataset.subset(order[:n]), dataset.subset(order[n:])


def _rank(seed: int, purpose: str, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\x1f{purpose}\x1f{name}".encode(), digest_size=16).digest()


def ranked(ids: Sequence[str], seed: int, purpose: str) -> list[int]:
    """Return positions in an order that depends, for each pair, on those two ids alone.

    A permutation drawn from a generator would change altogether when one bad file is left out.
    """
    return sorted(range(len(ids)), key=lambda index: _rank(seed, purpose, ids[index]))
