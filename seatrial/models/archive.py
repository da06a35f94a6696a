"""What a zip archive may look like before any library is allowed to unpack it."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from seatrial.errors import BadInput

_CHUNK = 1 << 20


@dataclass(frozen=True)
class ArchiveLimits:
    """How much an archive may unpack to: `total_bytes` in all, and `ratio` times its size for a compressed member."""

    total_bytes: int = 16 << 30
    ratio: int = 200
    members: int = 200_000


def check_members(
    file: BinaryIO,
    source: str,
    limits: ArchiveLimits | None = None,
    *,
    known: Callable[[str], bool] = lambda name: True,
) -> dict[str, int]:
    """Return the unpacked size in bytes of every member of a zip, by name without the archive's own root folder.

    Refused with BadInput: a damaged zip, absolute names and names that climb out, links, names that occur twice,
    bytes after the zip (readers could disagree about them), names that `known` does not know, encrypted members, and
    more than `limits`. Nothing is unpacked.
    """
    limits = limits or ArchiveLimits()
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            comment = archive.comment
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OSError) as error:
        raise _refused(source, f"no readable archive ({error})") from error
    if comment:
        raise _refused(source, "an archive with bytes after its end")
    if not members or len(members) > limits.members:
        raise _refused(source, f"{len(members)} members")
    sizes: dict[str, int] = {}
    seen: set[str] = set()
    root = members[0].filename.split("/")[0]
    for member in members:
        name = member.filename
        shown = ascii(name[:120])
        # The raw name too: zipfile cuts at NUL and turns backslashes, other readers do not.
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.orig_filename or "\0" in member.orig_filename:
            raise _refused(source, f"a member named {shown}, which leaves the archive")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise _refused(source, f"a member {shown} that is a link")
        if name.casefold() in seen:
            raise _refused(source, f"two members named {shown}")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(source, f"a member {shown} that is encrypted or packed in a rare way")
        if member.file_size > max(limits.ratio * member.compress_size, _CHUNK):
            raise _refused(source, f"a member {shown} that unpacks to {member.file_size} bytes")
        seen.add(name.casefold())
        inner = name.removeprefix(root + "/")
        if inner == name or not known(inner):
            raise _refused(source, f"a member {shown}, which is no part of a model")
        sizes[inner] = member.file_size
    if sum(sizes.values()) > limits.total_bytes:
        raise _refused(source, f"{sum(sizes.values())} bytes when unpacked")
    return sizes


def is_zip(path: Path) -> bool:
    """Return whether a file begins as a zip archive does."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def existing_file(path: Path, wanted: str) -> Path:
    """Return `path` if it is a readable, non-empty plain file; raises BadInput otherwise."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file"
        raise BadInput(f"'{path}' is {what}", wanted, "check the path")
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read ({error.strerror})", wanted, "check its permissions") from error
    if not first:
        raise BadInput(f"'{path}' is empty", wanted, "download or save it again")
    return path


def _refused(source: str, came: str) -> BadInput:
    return BadInput(
        f"'{source}' holds {came}",
        "an archive as torch writes it",
        "get the file from a source that you trust, or save the model again",
    )
