"""Open data: folders, archives, Python iterables and the built-in digits."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from PIL import Image

from seatrial.data.archive import list_tar
from seatrial.data.array_set import ArraySet, checked_array, pairs
from seatrial.data.bad_sample import BadSample
from seatrial.data.digits import digits_split
from seatrial.data.image_set import Content, Entry, ImageSet, MemoryContent
from seatrial.data.labels import LabelRule, check_integers, choose_labels, read_label_table
from seatrial.data.listing import Listing, list_folder, printable_id
from seatrial.data.picture_folder import is_picture
from seatrial.errors import BadInput

DIGITS = "digits"
_LABELS_TABLE = "labels.csv"
S = TypeVar("S", ImageSet, ArraySet)
_Labeler = Callable[[Iterable[str]], LabelRule]

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


def open_data(
    source: str | Path | Iterable[Any],
    *,
    class_names: Sequence[str] | None = None,
    wnids: Sequence[str] | None = None,
    classes_file: Path | None = None,
    n_classes: int | None = None,
) -> ImageSet | ArraySet:
    """Open labelled pictures for a model of `n_classes` classes.

    `source` is `"digits"` (the test part of the built-in data); a folder or tar archive (`.tar`, `.tar.gz`,
    `.tar.bz2`, `.tar.xz`) with a `labels.csv` of the columns file,label or else with a folder a class; or an iterable
    of (input, label) or of batches of them, such as a DataLoader. Inputs are float CHW in [0, 1] or uint8 HWC at
    network size (an ArraySet), or image files as bytes or Pillow images of any size (an ImageSet); all are held in
    memory. A data set that is open already is returned as it is.
    Labels are found as `labels.choose_labels` says. Raises BadInput for data that is missing, empty, of one class
    only, or labelled outside the model's classes, and for what `archive.list_tar` refuses.
    """
    if isinstance(source, (ImageSet, ArraySet)):
        check_integers(source.labels, n_classes)
        return source
    if not isinstance(source, (str, Path)):
        return _from_iterable(source, class_names, n_classes)
    label = partial(choose_labels, class_names=class_names, wnids=wnids, classes_file=classes_file, n_classes=n_classes)
    if str(source) == DIGITS:
        return _relabeled(digits_split()[1], label)
    path = Path(source).expanduser()
    try:
        listing = list_folder(path) if path.is_dir() else list_tar(path) if path.is_file() else None
    except PermissionError as failure:
        raise BadInput(f"{failure.filename} cannot be read", "readable data", "check its permissions") from failure
    if listing is None:
        raise BadInput(
            f"no file or folder '{source}'", "a folder, a tar archive, or 'digits'", "check --data for a typing error"
        )
    return _from_listing(str(source), listing, label)


def open_training_digits() -> ImageSet:
    """Return the training part of the built-in digits, from which calibration samples for them are drawn too."""
    return digits_split()[0]


def _from_listing(source: str, listing: Listing, label: _Labeler) -> ImageSet:
    notes: list[str] = []
    while (inner := _only_folder(listing)) is not None:
        listing = listing.below(inner)
        notes.append(f"the data lies in '{inner}'")
    if not listing.files:
        raise BadInput(f"'{source}' is empty", "pictures in a folder a class, or labels.csv", "check --data")
    if _LABELS_TABLE in listing.files:
        found, bad = _by_table(source, listing)
        names = {name for name, _, _ in found}
    else:
        found, names = _by_folder(source, listing, notes)
        bad = []
    rule = label(names)
    entries = _in_order(Entry(printable_id(path), rule.label_of[name], content) for name, path, content in found)
    return _checked(
        source, ImageSet(listing.name, entries, rule.class_names, rule.rule, tuple(sorted(bad)), tuple(notes))
    )


def _only_folder(listing: Listing) -> str | None:
    """Return the one folder that holds all classes (or the table), as archives often have it, if there is one."""
    tops = listing.top_folders()
    if _LABELS_TABLE in listing.files or len(tops) != 1 or any(is_picture(path) for path in _in_root(listing)):
        return None
    inner = listing.below(tops[0])
    return tops[0] if _LABELS_TABLE in inner.files or inner.top_folders() else None


def _in_root(listing: Listing) -> Iterable[str]:
    return (path for path in listing.files if "/" not in path)


def _by_table(source: str, listing: Listing) -> tuple[list[tuple[str, str, Content]], list[tuple[str, str]]]:
    """Return (label's name, path, content) of each row of labels.csv, and the rows whose file is not there."""
    try:
        table = read_label_table(f"{source}/{_LABELS_TABLE}", listing.files[_LABELS_TABLE].read())
    except BadSample as failure:
        raise BadInput(f"{source}/{_LABELS_TABLE}: {failure.reason}", "a readable table", "check the file") from failure
    found: list[tuple[str, str, Content]] = []
    bad: list[tuple[str, str]] = []
    for file, label in table:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts:
            raise BadInput(
                f"'{file}' in {source}/{_LABELS_TABLE}", "paths within the data", "write paths from its folder"
            )
        content = listing.files.get(str(path))
        if content is None:
            bad.append((printable_id(str(path)), "no such file"))
        else:
            found.append((label, str(path), content))
    return found, bad


def _by_folder(source: str, listing: Listing, notes: list[str]) -> tuple[list[tuple[str, str, Content]], set[str]]:
    """Return (class, path, content) of each picture, and the names of all classes, those without files included."""
    tops = listing.top_folders()
    if not tops:
        raise BadInput(
            f"'{source}' has neither labels.csv nor folders", "a folder a class, or labels.csv", "sort the pictures"
        )
    if {name.lower() for name in tops} <= _SPLITS and any(path.count("/") > 1 for path in listing.files):
        raise BadInput(f"'{source}' holds the parts {', '.join(tops)}", "one part", f"give {source}/{tops[-1]}")
    found: list[tuple[str, str, Content]] = []
    left_out: list[str] = []
    for path, content in listing.files.items():
        if "/" in path and is_picture(path):
            found.append((path.split("/", 1)[0], path, content))
        else:
            left_out.append(path)
    if left_out:
        notes.append(f"{len(left_out)} other files were left out, first '{printable_id(min(left_out))}'")
    # A folder of other things is no class; an empty one is, else the classes after it would get other labels.
    names = {name for name, _, _ in found}
    return found, names | (set(tops) - {path.split("/", 1)[0] for path in left_out if "/" in path})


def _from_iterable(
    source: Iterable[Any], class_names: Sequence[str] | None, n_classes: int | None
) -> ImageSet | ArraySet:
    inputs: list[Any] = []
    labels: list[int] = []
    for position, (value, label) in enumerate(pairs(source)):
        encoded = _image_bytes(value)
        inputs.append(checked_array(value, position) if encoded is None else encoded)
        labels.append(label)
    if not inputs:
        raise BadInput("an iterable that gives nothing", "(input, label) pairs", "check the data set")
    if n_classes is None and class_names is not None:
        n_classes = len(class_names)
    check_integers(labels, n_classes)
    names = tuple(class_names or (str(label) for label in range(max(n_classes or 0, max(labels) + 1))))
    width = max(6, len(str(len(inputs) - 1)))
    ids = tuple(f"{position:0{width}d}" for position in range(len(inputs)))
    are_files = {isinstance(value, bytes) for value in inputs}
    if are_files == {True}:
        entries = tuple(Entry(*given) for given in zip(ids, labels, map(MemoryContent, inputs)))
        return _checked("the iterable", ImageSet("iterable", entries, names, "given"))
    if True in are_files:
        raise BadInput("an iterable of arrays and image files", "one kind of input", "convert one into the other")
    return _checked("the iterable", ArraySet("iterable", ids, tuple(labels), tuple(inputs), names))


def _image_bytes(value: Any) -> bytes | None:
    if isinstance(value, bytes):
        return value
    if isinstance(value, Image.Image):
        written = io.BytesIO()
        value.convert("RGB").save(written, "PNG")  # lossless
        return written.getvalue()
    return None


def _relabeled(dataset: ImageSet, label: _Labeler) -> ImageSet:
    rule = label(dataset.class_names)
    entries = tuple(
        Entry(entry.id, rule.label_of[dataset.class_names[entry.label]], entry.content) for entry in dataset.entries
    )
    return ImageSet(dataset.name, entries, rule.class_names, rule.rule)


def _in_order(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    found = tuple(sorted(entries, key=lambda entry: entry.id))
    for one, next_one in pairwise(found):
        if one.id == next_one.id:
            raise BadInput(f"'{one.id}' is there twice", "each file once", "remove one of the two")
    return found


def _checked(source: str, dataset: S) -> S:
    """Return `dataset`; raises BadInput where it is empty or has one class only."""
    found = set(dataset.labels)
    if not found:
        first = f", first '{dataset.bad[0][0]}': {dataset.bad[0][1]}" if dataset.bad else ""
        raise BadInput(f"'{source}' without a single picture{first}", "labelled pictures", "check --data")
    if len(found) == 1:
        label = found.pop()
        raise BadInput(
            f"'{source}' with one class only, '{dataset.class_names[label]}'", "at least two classes", "check --data"
        )
    return dataset
