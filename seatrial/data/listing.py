"""What a folder or an archive holds, by path: the input of the label rules, whatever it was read from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seatrial.data.image_set import Content, FileContent
from seatrial.errors import BadInput


@dataclass(frozen=True)
class Listing:
    """Regular files (path with forward slashes -> content) and folders; hidden ones are left out."""

    name: str
    files: dict[str, Content]
    folders: frozenset[str]

    def below(self, folder: str) -> Listing:
        """Return what lies in `folder`, with paths from there."""
        start = folder + "/"
        return Listing(
            self.name,
            {path[len(start) :]: content for path, content in self.files.items() if path.startswith(start)},
            frozenset(path[len(start) :] for path in self.folders if path.startswith(start)),
        )

    def top_folders(self) -> list[str]:
        """Return the names of the folders directly in the root, sorted, empty ones included."""
        found = {path.split("/", 1)[0] for path in self.files if "/" in path}
        return sorted(found | {path.split("/", 1)[0] for path in self.folders})


def is_hidden(path: str) -> bool:
    """Return whether a part of the path is hidden: a leading dot (also of `._x.jpg`), or macOS's own folder."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def printable_id(path: str) -> str:
    """Return the path as text that can be stored: undecodable bytes are written as escapes."""
    return path.encode("utf-8", "backslashreplace").decode()


def list_folder(root: Path) -> Listing:
    """List a folder with all folders below it, links followed; raises BadInput where it cannot be read."""
    files: dict[str, Content] = {}
    folders: set[str] = set()
    try:
        for path, entry in _walk(root, "", frozenset({_identity(os.stat(root))})):
            if entry.is_dir():
                folders.add(path)
            else:
                files[path] = FileContent(Path(entry.path))
    except OSError as failure:
        raise BadInput(f"{root} cannot be read ({failure.strerror})", "a readable folder", "check it") from failure
    return Listing(root.resolve().name, files, frozenset(folders))


def _walk(folder: Path, below: str, seen: frozenset[tuple[int, int]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda found: found.name):
            path = below + entry.name
            if is_hidden(entry.name):
                continue
            yield path, entry
            if entry.is_dir():
                # A link to a folder that holds it would never end.
                identity = _identity(entry.stat())
                if identity not in seen:
                    yield from _walk(Path(entry.path), path + "/", seen | {identity})


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
