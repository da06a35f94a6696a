"""Labelled image files as a data set: encoded bytes, read when asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from seatrial.core.sample import Sample
from seatrial.data.bad_sample import BadSample
from seatrial.data.entry_set import EntrySet

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
class ImageSet(EntrySet[Entry]):
    """Labelled image files in order of id (the path below the root, with forward slashes), read lazily.

    `class_names[label]` names a label; `label_rule` says how folder names or names in a table became labels; `bad`
    lists (id, reason) of samples that could not even be found; `notes` what else was left out or assumed.
    """

    class_names: tuple[str, ...]
    label_rule: str
    bad: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> Sequence[int]:
        """The samples' labels, in order of id."""
        return self._labels

    @cached_property
    def _labels(self) -> tuple[int, ...]:
        return tuple(entry.label for entry in self.entries)

    def contents(self) -> Iterable[tuple[str, int, bytes | None]]:
        """Return ids, labels and the bytes of files."""
        return ((entry.id, entry.label, bytes_or_none(entry.content)) for entry in self.entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        return Sample(entry.id, entry.label, encoded=entry.content.read())


def bytes_or_none(content: Content) -> bytes | None:
    """Return the bytes of a content, None where it cannot be read."""
    try:
        return content.read()
    except BadSample:
        return None
