"""Files that are never half written: aside, synced, renamed."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from seatrial.errors import BadInput

ASIDE = ".aside"
"""How the names of unfinished files end; they begin with a dot, so no pattern for finished files finds them."""

_REFUSALS = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is over its quota",
    errno.EACCES: "cannot be written to",
    errno.EPERM: "cannot be written to",
    errno.EROFS: "is on a read-only file system",
    errno.ENOTDIR: "is not a folder",
    errno.EEXIST: "is not a folder",
}


def write_whole(path: Path, content: bytes) -> None:
    """Give `path` this content in one step: a reader, and a process killed at any moment, sees the old or the new file.

    Raises OSError where the folder refuses; nothing is left behind then.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}{ASIDE}")
    try:
        with aside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def refusal(folder: Path, error: OSError) -> BadInput | None:
    """Return what to tell the user where `folder` is full or cannot be written to, None for any other fault."""
    why = _REFUSALS.get(error.errno or 0)
    if why is None:
        return None
    do = "free some space and run the same command again: finished cells stay"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        do = "give another folder with --out, or mend its permissions"
    return BadInput(f"the folder {folder} {why}", "a folder with room that can be written to", do)


def _sync_folder(folder: Path) -> None:
    # The rename itself is durable only once the folder is; Windows cannot open folders and does this by itself.
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
