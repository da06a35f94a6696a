"""Labelled image files as a data set: encoded bytes, read when asked for."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Self

from seatrial.core.sample import Sample
from seatrial.data.bad_sample import BadSample

MAX_FILE_BYTES = 64 * 2**20
"""Image files and tar members above this are refused."""


@dataclass(frozen=True)
class FileContent:
    """The bytes of a file on disk."""

    path: Path

    def read(self) -> bytes:
        """Return the file's bytes; raises BadSample where it is missing, no regular file, or above 64 MiB."""
        try:
            # Looked at before it is opened: a named pipe would block, a device would never end.
            found = os.stat(self.path)
            if not stat.S_ISREG(found.st_mode):
                raise BadSample("not a regular file")
            if found.st_size > MAX_FILE_BYTES:
                raise BadSample(f"{found.st_size / 2**20:.0f} MiB are above the limit of {MAX_FILE_BYTES // 2**20}")
            with open(self.path, "rb") as file:
                return file.read(MAX_FILE_BYTES)
        except (OSError, ValueError) as failure:  # ValueError: a path with a null byte
            said = failure.strerror if isinstance(failure, OSError) else failure
            raise BadSample(f"cannot be read: {said}") from failure


@dataclass(frozen=True)
class TarContent:
    """The bytes of one member of an uncompressed tar archive, `size` bytes from `offset`."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the member's bytes; raises BadSample where the archive is gone or has been cut short."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                found = file.read(self.size)
        except OSError as failure:
            raise BadSample(f"{self.path} cannot be read: {failure.strerror}") from failure
        if len(found) != self.size:
            raise BadSample(f"{self.path} ends within it")
        return found


@dataclass(frozen=True)
class MemoryContent:
    """Bytes that are held in memory (of a compressed archive, of the built-in data)."""

    encoded: bytes

    def read(self) -> bytes:
        """Return the bytes."""
        return self.encoded


Content = FileContent | TarContent | MemoryContent


@dataclass(frozen=True)
class Entry:
    """One labelled image file and where its bytes are."""

    id: str
    label: int
    content: Content


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled image files in order of id (the path below the root, with forward slashes), read lazily.

    `class_names[label]` names a label; `label_rule` says how folder names or names in a table became labels; `bad`
    lists (id, reason) of samples that could not even be found; `notes` what else was left out or assumed.
    """

    name: str
    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]
    label_rule: str
    bad: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert all(a < b for a, b in pairwise(self.ids)), "entries must be in order of unique ids"

    @property
    def ids(self) -> Sequence[str]:
        """The samples' ids, in order."""
        return self._ids

    @cached_property
    def _ids(self) -> tuple[str, ...]:
        return tuple(entry.id for entry in self.entries)

    @property
    def labels(self) -> Sequence[int]:
        """The samples' labels, in order of id."""
        return self._labels

    @cached_property
    def _labels(self) -> tuple[int, ...]:
        return tuple(entry.label for entry in self.entries)

    @property
    def digest(self) -> str:
        """BLAKE2b over ids, labels and contents (reads every file once); an unreadable file counts as no bytes."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return digest_of((entry.id, entry.label, _bytes_or_none(entry.content)) for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        return Sample(entry.id, entry.label, encoded=entry.content.read())

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


def _bytes_or_none(content: Content) -> bytes | None:
    try:
        return content.read()
    except BadSample:
        return None
