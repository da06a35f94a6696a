"""Corrupted pictures that were made before: the published folders of ImageNet-C and arrays of CIFAR-10-C."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from seatrial.data.array_set import ArraySet
from seatrial.data.files import open_data
from seatrial.data.image_set import ImageSet
from seatrial.data.labels import check_integers
from seatrial.errors import BadInput, unknown_name

SEVERITIES = (1, 2, 3, 4, 5)
_LABELS = "labels.npy"


def corrupted_parts(root: Path) -> dict[str, tuple[int, ...]]:
    """Return the corruptions that `root` holds, by name, each with its severities.

    A corruption is a folder of folders 1 to 5 (also one level further down, as ImageNet-C's archives `blur`, `noise`,
    ... have it), or an array `NAME.npy` beside `labels.npy`. Raises BadInput where there is neither.
    """
    root = Path(root).expanduser()
    try:
        folders = [folder for folder in root.glob("*") if folder.is_dir()]
        folders += [inner for folder in folders for inner in folder.glob("*") if inner.is_dir()]
        found = {folder.name: severities for folder in folders if (severities := _severities(folder))}
        if (root / _LABELS).is_file():
            found |= {file.stem: SEVERITIES for file in root.glob("*.npy") if file.name != _LABELS}
    except OSError as failure:
        raise BadInput(f"{root} cannot be read ({failure.strerror})", "a readable folder", "check it") from failure
    if not found:
        raise BadInput(
            f"'{root}' without a corruption",
            "CORRUPTION/SEVERITY/CLASS/picture, or CORRUPTION.npy beside labels.npy",
            "give the folder above those",
        )
    return dict(sorted(found.items()))


def open_corrupted(
    root: Path,
    corruption: str,
    severity: int,
    *,
    class_names: Sequence[str] | None = None,
    wnids: Sequence[str] | None = None,
    classes_file: Path | None = None,
    n_classes: int | None = None,
) -> ImageSet | ArraySet:
    """Open one corruption at one severity; its samples have the same ids at every severity.

    ImageNet-C: `root/CORRUPTION/SEVERITY/CLASS/picture` gives an ImageSet that reads files when asked for, with labels
    as `open_data` finds them. CIFAR-10-C: `root/CORRUPTION.npy`, uint8 [5 n, height, width, 3] in blocks by severity,
    and `labels.npy`, 5 n or n integers, give an ArraySet mapped from disk, so that memory stays bounded; pickled
    arrays are refused. Raises BadInput for a corruption or severity that is not there and for other contents.
    Source: Hendrycks and Dietterich 2019, arXiv 1903.12261, and the files published with it.
    """
    root = Path(root).expanduser()
    parts = corrupted_parts(root)
    if corruption not in parts:
        raise unknown_name("corruption", corruption, parts)
    if isinstance(severity, bool) or severity not in parts[corruption]:
        there = ", ".join(map(str, parts[corruption]))
        raise BadInput(f"severity {severity!r} of '{corruption}' in {root}", f"one of: {there}", "pick one of those")
    severity = int(severity)
    name = f"{root.resolve().name}/{corruption}/{severity}"
    file = root / f"{corruption}.npy"
    if file.is_file() and (root / _LABELS).is_file():
        return _of_arrays(name, file, severity, class_names, n_classes)
    folder = next(place for place in (root, *sorted(root.iterdir())) if _severities(place / corruption)) / corruption
    opened = open_data(
        folder / str(severity), class_names=class_names, wnids=wnids, classes_file=classes_file, n_classes=n_classes
    )
    return replace(opened, name=name)


def _severities(folder: Path) -> tuple[int, ...]:
    return tuple(severity for severity in SEVERITIES if (folder / str(severity)).is_dir())


def _of_arrays(
    name: str, file: Path, severity: int, class_names: Sequence[str] | None, n_classes: int | None
) -> ArraySet:
    pictures, labels = _pictures(file), _labels(file.with_name(_LABELS))
    count = len(pictures) // len(SEVERITIES)
    if len(labels) not in (count, len(pictures)):
        raise BadInput(
            f"{len(labels)} labels for {len(pictures)} pictures of {file}", "a label a picture", "check labels.npy"
        )
    start = (severity - 1) * count
    of_block = labels[start : start + count] if len(labels) == len(pictures) else labels
    given = tuple(of_block.tolist())
    if n_classes is None and class_names is not None:
        n_classes = len(class_names)
    check_integers(given, n_classes)
    names = tuple(class_names or map(str, range(max(n_classes or 0, max(given) + 1))))
    width = max(6, len(str(count - 1)))
    ids = tuple(f"{position:0{width}d}" for position in range(count))
    return ArraySet(name, ids, given, tuple(pictures[start : start + count]), names, "integers")


def _pictures(file: Path) -> UInt8[np.ndarray, "all height width 3"]:
    found = _mapped(file)
    if found.dtype != np.uint8 or found.ndim != 4 or found.shape[3] != 3 or not found.size:
        raise BadInput(
            f"{file} with {found.dtype} of shape {found.shape}",
            "uint8 RGB pictures [5 n, height, width, 3]",
            "check it",
        )
    if len(found) % len(SEVERITIES):
        raise BadInput(f"{len(found)} pictures in {file}", "five blocks of equal length", "download it again")
    return found


def _labels(file: Path) -> Int64[np.ndarray, " labels"]:
    found = _mapped(file)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise BadInput(f"{file} with {found.dtype} of shape {found.shape}", "integer labels in one row", "check it")
    return found.astype(np.int64)


def _mapped(file: Path) -> np.ndarray:
    """Return the array of a file, mapped, not read; a pickled one would run code and is refused."""
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as failure:
        said = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
        raise BadInput(f"{file} cannot be read ({said})", "an array saved by numpy", "download it again") from failure
    if not isinstance(found, np.ndarray):
        found.close()
        raise BadInput(f"{file}, an archive of arrays", "one array", "save the array itself")
    return found.view(np.ndarray)
