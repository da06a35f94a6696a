"""Folders and archives that hold pictures with files of annotations among them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from seatrial.data.archive import list_tar
from seatrial.data.listing import Listing, list_folder
from seatrial.errors import BadInput

_PICTURE_ENDINGS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp"}
    | {".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm"}
)
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_BESIDE = "images"
"""Annotations lie in a folder beside one of this name, with the same folders below it."""


def is_picture(path: str) -> bool:
    """Return whether a path ends as the files of pictures that can be decoded do."""
    return PurePosixPath(path).suffix.lower() in _PICTURE_ENDINGS


def listing_of(path: Path, *, sidecar: str = "") -> tuple[Listing, str | None]:
    """Return the files of a folder or tar archive, or those around a file that ends in `sidecar`, and that file.

    A file in a folder `annotations` stands for the folder above it. A part such as `.../images/val` brings
    `.../labels/val` (or masks, annotations) along. Raises BadInput where nothing is there or it cannot be read.
    """
    try:
        if path.is_dir():
            return _with_annotations(path), None
        if path.is_file() and sidecar and path.suffix.lower() == sidecar:
            root = path.absolute().parent
            root = root.parent if root.name.lower() == "annotations" else root
            return list_folder(root), path.absolute().relative_to(root).as_posix()
        if path.is_file():
            return list_tar(path), None
    except PermissionError as failure:
        raise BadInput(f"{failure.filename} cannot be read", "readable data", "check its permissions") from failure
    raise BadInput(f"no file or folder '{path}'", "a folder or a tar archive", "check --data for a typing error")


def one_part(source: str, pictures: Iterable[str]) -> None:
    """Refuse data that hold several parts, such as train and val; raises BadInput, naming them."""
    parts = {part for name in pictures for part in PurePosixPath(name).parts[:-1] if part.lower() in _SPLITS}
    if len(parts) > 1:
        first = sorted(parts)
        raise BadInput(
            f"'{source}' holds the parts {', '.join(first)}", "one part", f"give its folder, as .../images/{first[-1]}"
        )


def _with_annotations(path: Path) -> Listing:
    found = list_folder(path)
    parts = path.absolute().parts
    at = max((number for number, part in enumerate(parts) if part == _BESIDE), default=0)
    if not at or any(not is_picture(name) for name in found.files):
        return found
    files = {f"{_BESIDE}/{name}": content for name, content in found.files.items()}
    for other in ("labels", "masks", "annotations"):
        beside = Path(*parts[:at], other, *parts[at + 1 :])
        if beside.is_dir():
            files |= {f"{other}/{name}": content for name, content in list_folder(beside).files.items()}
    return Listing(found.name, files, frozenset())
