"""What every data set of files has in common: entries in order of id, read when asked for."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Generic, Protocol, Self, TypeVar

from seatrial.core.sample import Sample


class Identified(Protocol):
    """One entry of a data set."""

    @property
    def id(self) -> str: ...


E = TypeVar("E", bound=Identified)


@dataclass(frozen=True, eq=False)
class EntrySet(ABC, Generic[E]):
    """Entries in order of id (the path below the root, with forward slashes), read lazily.

    Laws: ids are unique and in order; parts keep that order; `digest` depends on what `contents` gives alone.
    """

    name: str
    entries: tuple[E, ...]

    def __post_init__(self) -> None:
        assert all(a < b for a, b in pairwise(self.ids)), "entries must be in order of unique ids"

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Return one sample; raises BadSample where it cannot be read."""

    @abstractmethod
    def contents(self) -> Iterable[tuple[str, int, bytes | None]]:
        """Return what the digest is of: (id, label, content) triples, None for a content that cannot be read."""

    @property
    def ids(self) -> Sequence[str]:
        """The samples' ids, in order."""
        return self._ids

    @cached_property
    def _ids(self) -> tuple[str, ...]:
        return tuple(entry.id for entry in self.entries)

    @property
    def digest(self) -> str:
        """BLAKE2b over `contents` (reads every file once); an unreadable file counts as no bytes."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return digest_of(self.contents())

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def subset(self, indices: Iterable[int]) -> Self:
        """Return the samples at these positions, in order of id."""
        return replace(self, entries=tuple(self.entries[index] for index in sorted(set(indices))))

    def without(self, ids: Iterable[str]) -> Self:
        """Return the samples whose ids are not among `ids`."""
        unwanted = frozenset(ids)
        return replace(self, entries=tuple(entry for entry in self.entries if entry.id not in unwanted))


def digest_of(samples: Iterable[tuple[str, int, bytes | None]]) -> str:
    """Return the BLAKE2b digest of (id, label, content) triples; None for a content that cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    for name, label, content in samples:
        # Lengths in front, so that no two different lists give the same bytes.
        size = -1 if content is None else len(content)
        encoded = name.encode()
        digest.update(f"{len(encoded)} {label} {size}\n".encode() + encoded)
        digest.update(content or b"")
    return digest.hexdigest()
