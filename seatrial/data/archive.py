"""List a tar archive that nobody vouches for; nothing is ever unpacked to disk."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from seatrial.data.image_set import MAX_FILE_BYTES, Content, MemoryContent, TarContent
from seatrial.data.listing import Listing, is_hidden
from seatrial.errors import BadInput

MAX_UNPACKED_BYTES = 2**30
"""A compressed archive is kept unpacked in memory, so it is refused above this; an uncompressed one stays on disk."""

MAX_MEMBERS = 2_000_000
_BLOCK = 512
_DAMAGED = (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error, ValueError, OverflowError, RecursionError)


def list_tar(path: Path) -> Listing:
    """List `.tar`, `.tar.gz`, `.tar.bz2` or `.tar.xz` (told apart by their first bytes).

    Raises BadInput, naming the member, for one that is absolute, climbs out with `..`, is a link, a device or
    another special file, is above 64 MiB or appears twice; and for an archive that is damaged, has more than two
    million members, or is compressed and above 1 GiB unpacked; and for a zip file or an array.
    """
    files: dict[str, Content] = {}
    folders: set[str] = set()
    try:
        packed, stream = _opened(path)
        with stream:
            reader = _BoundedReader(stream, path, MAX_UNPACKED_BYTES if packed else None)
            for member in _members(path, reader):
                name = _checked_name(path, member)
                if not name or is_hidden(name):
                    continue
                if member.isdir():
                    folders.add(name)
                    continue
                if name in files:
                    raise _refused(path, member, "is there twice", "each path once")
                if packed:
                    reader.seek(member.offset_data)
                    content = MemoryContent(reader.read(member.size))
                    if len(content.encoded) != member.size:
                        raise tarfile.ReadError("unexpected end of data")
                else:
                    content = TarContent(path.absolute(), member.offset_data, member.size)
                files[name] = content
    except _DAMAGED as failure:
        said = str(failure) or type(failure).__name__
        raise BadInput(
            f"{path} cannot be read ({said})", "a whole tar archive", "check or download it again"
        ) from failure
    return Listing(path.name.split(".tar", 1)[0], files, frozenset(folders))


class _BoundedReader:
    """A file that only goes forward and never gives more than it was allowed to.

    tarfile reads a header's extension in one piece, of whatever size the header states, and follows negative sizes
    backwards for ever.
    """

    def __init__(self, stream: IO[bytes], path: Path, limit: int | None) -> None:
        self._stream, self._path, self._limit = stream, path, limit
        self._reached = 0
        self.last_block = b""

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAX_FILE_BYTES + _BLOCK:
            raise BadInput(f"{self._path} with a header of {size} bytes", "an honest archive", "do not trust it")
        found = self._stream.read(size)
        self._advance(self._stream.tell())
        self.last_block = found
        return found

    def seek(self, position: int) -> None:
        if position < self._reached - _BLOCK:
            raise BadInput(f"{self._path} with a member of negative size", "an honest archive", "do not trust it")
        self._advance(position)  # first: a compressed stream unpacks all it skips
        self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()

    def _advance(self, position: int) -> None:
        self._reached = max(self._reached, position)
        if self._limit is not None and self._reached > self._limit:
            raise BadInput(
                f"{self._path}, above {self._limit / 2**30:.2g} GiB unpacked",
                "less (a compressed archive is held in memory)",
                "unpack it and give the folder or the plain .tar",
            )


def _opened(path: Path) -> tuple[bool, IO[bytes]]:
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith((b"PK\x03\x04", b"\x93NUMPY")):
        kind = "a zip file, as .npz is" if start.startswith(b"PK") else "a NumPy array"
        raise BadInput(
            f"{path}, {kind}",
            "a folder or a tar archive of pictures",
            "unpack it, or pass (array, label) pairs from Python",
        )
    if start.startswith(b"\xfd7zXZ\x00"):
        return True, lzma.open(path, "rb")
    if start.startswith(b"\x1f\x8b"):
        return True, gzip.open(path, "rb")  # pyright: ignore[reportReturnType]
    if start.startswith(b"BZh"):
        return True, bz2.open(path, "rb")
    return False, open(path, "rb")


def _members(path: Path, reader: _BoundedReader) -> Iterator[tarfile.TarInfo]:
    with tarfile.open(fileobj=reader, mode="r:") as archive:  # pyright: ignore[reportArgumentType,reportCallIssue]
        count = 0
        while (member := archive.next()) is not None:
            archive.members.clear()  # they would all be kept
            count += 1
            if count > MAX_MEMBERS:
                raise BadInput(f"{path} with more than {MAX_MEMBERS:,} members", "fewer", "give the unpacked folder")
            yield member
        # tarfile takes a damaged header for the end.
        if reader.last_block.strip(b"\0"):
            raise tarfile.ReadError("damaged header")


def _checked_name(path: Path, member: tarfile.TarInfo) -> str:
    """Return the member's path without `.` parts; raises BadInput for every kind of member that is not wanted."""
    parts = member.name.replace("\\", "/").split("/")
    if member.name.startswith(("/", "\\")) or (len(parts[0]) == 2 and parts[0][1] == ":"):
        raise _refused(path, member, "is an absolute path", "paths within the archive")
    if ".." in parts:
        raise _refused(path, member, "climbs out of the archive", "paths within it")
    if member.issym() or member.islnk():
        raise _refused(path, member, "is a link", "files and folders")
    if member.issparse() or not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)):
        raise _refused(path, member, "is a special file", "files and folders")
    if not 0 <= member.size <= MAX_FILE_BYTES:
        raise _refused(path, member, f"has {member.size:,} bytes", f"at most {MAX_FILE_BYTES // 2**20} MiB")
    return "/".join(part for part in member.name.split("/") if part not in ("", "."))


def _refused(path: Path, member: tarfile.TarInfo, fault: str, wanted: str) -> BadInput:
    return BadInput(f"{path}: the member {member.name[:200]!r} {fault}", wanted, "leave it out of the archive")
