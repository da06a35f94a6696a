"""Open pictures with objects: YOLO text, COCO JSON or VOC XML, beside or above the pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import final

import numpy as np

from seatrial.data.bad_sample import BadSample
from seatrial.data.coco_json import read_coco
from seatrial.data.detection_set import DetectionSet, MarkedEntry
from seatrial.data.image_set import Content
from seatrial.data.labels import LabelRule, choose_labels
from seatrial.data.listing import Listing, printable_id
from seatrial.data.marks import Marks
from seatrial.data.picture_folder import is_picture, listing_of, one_part
from seatrial.data.voc_xml import read_voc
from seatrial.data.yolo_text import read_yolo
from seatrial.errors import BadInput

_NAMES = ("classes.txt", "labels.txt", "obj.names")
_LISTS = frozenset({*_NAMES, "train.txt", "val.txt", "test.txt", "readme.txt", "notes.txt"})
_WANTED = "YOLO text, COCO JSON or VOC XML annotations"


@final
@dataclass(frozen=True, eq=False)
class _Annotated:
    """What the annotations say: marks by the path of the picture, all classes in order, and what was remarked."""

    marks: Mapping[str, Marks]
    kinds: tuple[str, ...]
    missing: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def open_objects(
    source: str | Path,
    *,
    masks: bool = False,
    class_names: Sequence[str] | None = None,
    classes_file: Path | None = None,
    n_classes: int | None = None,
) -> DetectionSet:
    """Open pictures with annotated objects for a model of `n_classes` classes.

    `source` is a COCO JSON file with its pictures beside, below or above it; or a folder or tar archive with one such
    file, with VOC XML (`Annotations/` and `JPEGImages/`, or side by side), or with YOLO text (`images/` and `labels/`
    alike, or side by side; a part such as `images/val` may be given by itself). With `masks` samples carry masks.
    Classes become labels by the model's names or `classes_file`, else by their number in the file: the order of
    COCO's ids, YOLO's numbers, VOC's names in alphabetical order.
    Raises BadInput for data that is missing or ambiguous, classes that the model does not have, and broken rows, by
    file and row.
    """
    path = Path(source).expanduser()
    listing, chosen = listing_of(path, sidecar=".json")
    pictures = sorted(name for name in listing.files if is_picture(name))
    if not pictures:
        raise BadInput(f"'{source}' without a single picture", f"pictures with {_WANTED}", "check --data")
    found = _annotated(str(source), listing, pictures, chosen)
    rule = _rule(str(source), listing, found, class_names, classes_file, n_classes)
    entries = []
    for name in pictures:
        if name in found.marks:
            classes = np.array([rule.label_of[kind] for kind in found.marks[name].kinds], dtype=np.int64)
            entries.append(MarkedEntry(printable_id(name), listing.files[name], found.marks[name], classes))
    if not any(len(entry.classes) for entry in entries):
        raise BadInput(f"'{source}' without a single object", "annotated objects", "check --data")
    if masks and not any(entry.marks.outlines is not None for entry in entries):
        raise BadInput(f"'{source}' with boxes alone", "annotations with masks or outlines", "judge it as detection")
    left = len(pictures) - len(entries)
    notes = (*found.notes, *([f"{left} pictures that no annotation names were left out"] if left else []))
    ordered = tuple(sorted(entries, key=lambda entry: entry.id))
    return DetectionSet(listing.name, ordered, rule.class_names, rule.rule, masks, tuple(sorted(found.missing)), notes)


def _annotated(source: str, listing: Listing, pictures: Sequence[str], chosen: str | None) -> _Annotated:
    tables = [name for name in listing.files if name.endswith(".json") and name.count("/") < 2]
    if chosen is None and len(tables) > 1:
        shown = ", ".join(sorted(tables)[:4])
        raise BadInput(f"'{source}' with {len(tables)} JSON files ({shown})", "one of them", "give the file itself")
    if chosen is not None or tables:
        return _from_coco(source, listing, pictures, chosen or tables[0])
    one_part(source, pictures)
    sheets = [name for name in listing.files if name.endswith(".xml")]
    if sheets:
        return _from_voc(source, listing, pictures, sheets)
    return _from_yolo(source, listing, pictures)


def _from_coco(source: str, listing: Listing, pictures: Sequence[str], table: str) -> _Annotated:
    read = read_coco(table, _bytes(table, listing.files[table]))
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in pictures:
        by_name[PurePosixPath(name).name].append(name)
    marks: dict[str, Marks] = {}
    missing = []
    for file, marked in read.marks.items():
        path = PurePosixPath(file.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise BadInput(f"'{file[:80]}' in {table}", "paths within the data", "write paths from its folder")
        # As stated, in a folder such as val2017, else by the name alone where only one picture has it.
        same = by_name[path.name]
        fitting = [name for name in same if name == str(path)] or [n for n in same if n.endswith(f"/{path}")] or same
        if len(fitting) > 1:
            raise BadInput(f"'{file[:80]}' in {table}, which may be {' or '.join(fitting[:2])}", "one file", "move one")
        if not fitting:
            missing.append((printable_id(str(path)), "no such file"))
        elif fitting[0] in marks:
            raise BadInput(f"'{fitting[0]}' twice in {table}", "each picture once", "write paths from its folder")
        else:
            marks[fitting[0]] = marked
    if not marks:
        raise BadInput(f"none of the pictures of {table} in '{source}'", "the pictures beside it", "check --data")
    return _Annotated(marks, read.class_names, tuple(missing))


def _from_voc(source: str, listing: Listing, pictures: Sequence[str], sheets: Sequence[str]) -> _Annotated:
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in pictures:
        by_stem[PurePosixPath(name).stem].append(name)
    marks: dict[str, Marks] = {}
    missing = []
    for sheet in sheets:
        stated, marked = read_voc(sheet, _bytes(sheet, listing.files[sheet]))
        # Tools that copy sheets forget the name inside; the file's own name is right.
        fitting = by_stem[PurePosixPath(sheet).stem] or by_stem[PurePosixPath(stated).stem]
        beside = [name for name in fitting if PurePosixPath(name).parent == PurePosixPath(sheet).parent]
        fitting = beside or fitting
        if len(fitting) > 1 or (fitting and fitting[0] in marks):
            raise BadInput(f"{sheet}, which may belong to {fitting[0]}", "one sheet a picture", "rename one")
        if fitting:
            marks[fitting[0]] = marked
        else:
            missing.append((printable_id(sheet), "no such picture"))
    kinds = sorted({kind for marked in marks.values() for kind in marked.kinds})
    return _Annotated(marks, tuple(kinds), tuple(missing))


def _from_yolo(source: str, listing: Listing, pictures: Sequence[str]) -> _Annotated:
    marks: dict[str, Marks] = {}
    used: set[str] = set()
    empty = 0
    for name in pictures:
        sheet = next((text for text in _sheets(name) if text in listing.files), None)
        if sheet is None:
            empty += 1
            marks[name] = read_yolo(name, b"")
        else:
            used.add(sheet)
            marks[name] = read_yolo(sheet, _bytes(sheet, listing.files[sheet]))
    if not used:
        raise BadInput(f"'{source}' without annotations", _WANTED, "put labels/NAME.txt beside images/NAME.jpg")
    notes = [f"{empty} pictures without a text file hold no objects"] if empty else []
    alone = [
        name
        for name in listing.files
        if name.endswith(".txt") and name not in used and PurePosixPath(name).name.lower() not in _LISTS
    ]
    if alone:
        notes.append(f"{len(alone)} text files without a picture were left out, first '{min(alone)}'")
    kinds = {kind for marked in marks.values() for kind in marked.kinds}
    return _Annotated(marks, tuple(sorted(kinds, key=int)), notes=tuple(notes))


def _sheets(picture: str) -> Iterable[str]:
    """Return where the text of a picture may lie: in `labels` for its last folder `images`, or beside it."""
    beside = PurePosixPath(picture).with_suffix(".txt")
    parts = list(beside.parts)
    folders = [at for at, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
        yield str(PurePosixPath(*parts))
    yield str(beside)


def _rule(
    source: str,
    listing: Listing,
    found: _Annotated,
    class_names: Sequence[str] | None,
    classes_file: Path | None,
    n_classes: int | None,
) -> LabelRule:
    used = sorted({kind for marked in found.marks.values() for kind in marked.kinds})
    numbers = bool(used) and all(kind.isdigit() for kind in used)
    if class_names is not None or classes_file is not None or numbers:
        named = class_names if class_names is not None else _names_beside(listing) if classes_file is None else None
        rule = choose_labels(used, class_names=named, classes_file=classes_file, n_classes=n_classes)
        if rule.rule.startswith("sorted order") and used:
            known = set(class_names or ())
            first = next((kind for kind in used if kind not in known), used[0])
            raise BadInput(
                f"the class '{first[:40]}' in '{source}'", "classes of the model", "map names with --classes FILE"
            )
        return rule
    # Without names the order must be the model's, so all classes have to be there.
    if n_classes is not None and n_classes != len(found.kinds):
        raise BadInput(
            f"{len(found.kinds)} classes in '{source}' for a model of {n_classes} without names",
            "the model's classes",
            "give --classes FILE with one name a line",
        )
    label_of = {kind: label for label, kind in enumerate(found.kinds)}
    return LabelRule(label_of, found.kinds, "order in the annotations")


def _names_beside(listing: Listing) -> list[str] | None:
    for name in _NAMES:
        if name in listing.files:
            try:
                lines = _bytes(name, listing.files[name]).decode("utf-8-sig").split("\n")
            except UnicodeDecodeError:
                raise BadInput(f"{name} is not UTF-8 text", "one class name a line", "check the file") from None
            return [line.strip() for line in lines if line.strip()]
    return None


def _bytes(name: str, content: Content) -> bytes:
    try:
        return content.read()
    except BadSample as failure:
        raise BadInput(f"{name}: {failure.reason}", "a readable file", "check it") from failure
