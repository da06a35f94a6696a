"""COCO's annotations: one JSON file for all pictures."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from seatrial.core.runs import unpacked
from seatrial.data.marks import Marks, Outline
from seatrial.errors import BadInput

MAX_JSON_BYTES = 2**30
_MAX_SIDE = 1_000_000
_MOST = 1e12
"""No coordinate, area or count is as large."""


@final
@dataclass(frozen=True, eq=False)
class CocoFile:
    """What the file holds: the marks of each picture by the name of its file, and its classes in order of their ids.

    The kinds of the marks are names of classes.
    """

    marks: dict[str, Marks]
    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]


def read_coco(name: str, content: bytes) -> CocoFile:
    """Read boxes, crowds, areas and masks (polygons, or run lengths packed or not) of all pictures, empty ones too.

    Raises BadInput, naming file and entry, for anything that is not so, for entries that name a picture or class
    that is not listed, and for what is listed twice. Source: the data format of cocodataset.org.
    """
    if len(content) > MAX_JSON_BYTES:
        raise BadInput(f"{name} of {len(content) >> 20} MiB", f"at most {MAX_JSON_BYTES >> 20}", "give a part of it")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as failure:
        raise BadInput(f"{name} is damaged ({failure})", "JSON", "mend or download it again") from failure
    known = data if isinstance(data, dict) else {}
    parts: list[Any] = [known.get(part) for part in ("images", "annotations", "categories")]
    if not all(isinstance(part, list) for part in parts):
        raise BadInput(f"{name} without lists of images, annotations and categories", "COCO's format", "check --data")
    images, annotations, categories = parts
    names = _listed(name, "category", categories, "name")
    files = _listed(name, "image", images, "file_name")
    sizes = {entry["id"]: _size_px(entry) for entry in images}
    doubled = [kind for kind, count in Counter(names.values()).items() if count > 1]
    if doubled:
        raise BadInput(f"{name} with the class '{doubled[0][:40]}' twice", "a name for each class", "rename one")
    rows: dict[int, list[_Row]] = {number: [] for number in files}
    for index, entry in enumerate(annotations):
        where = f"{name}, annotation {index + 1}"
        if not isinstance(entry, dict):
            raise BadInput(f"{where}, a {type(entry).__name__}", "an object", "mend the entry")
        if isinstance(entry.get("id"), int):
            where += f" (id {entry['id']})"
        owner: Any = entry.get("image_id")
        kind: Any = entry.get("category_id")
        for value, listed, what in ((owner, files, "image"), (kind, names, "category")):
            if not isinstance(value, int) or value not in listed:
                raise BadInput(f"{where} of {what} {value!r}"[:160], f"a listed {what}", "mend the entry")
        rows[owner].append(_row(entry, names[kind], where))
    marks: dict[str, Marks] = {}
    for number, file in files.items():
        if file in marks:
            raise BadInput(f"{name} with the picture '{file[:80]}' twice", "each picture once", "remove one")
        marks[file] = _together(rows[number], sizes[number])
    ordered = sorted(names)
    return CocoFile(marks, tuple(names[number] for number in ordered), tuple(ordered))


@final
@dataclass(frozen=True, eq=False)
class _Row:
    kind: str
    box: list[float]
    crowd: bool
    area_px: float
    outline: Outline | None


def _listed(name: str, what: str, entries: list[Any], field: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for index, entry in enumerate(entries):
        where = f"{name}, {what} {index + 1}"
        number, text = (entry.get("id"), entry.get(field)) if isinstance(entry, dict) else (None, None)
        if not isinstance(number, int) or not isinstance(text, str) or not text:
            raise BadInput(f"{where}, without id or {field}", f"an integer id and a {field}", "mend the entry")
        if number in found:
            raise BadInput(f"{where}, with the id {number} again", "each id once", "mend the entry")
        found[number] = text
    return found


def _row(entry: dict[str, Any], kind: str, where: str) -> _Row:
    box = _numbers(entry.get("bbox"))
    if box is None or len(box) != 4 or box[2] < 0 or box[3] < 0:
        raise BadInput(f"{where} with the box {entry.get('bbox')!r}"[:160], "x, y, width, height", "mend the entry")
    crowd, area = entry.get("iscrowd", 0), _numbers([entry.get("area", math.nan)], nan=True)
    if crowd not in (0, 1) or area is None or area[0] < 0:
        raise BadInput(f"{where} with a broken iscrowd or area", "0 or 1, and a number", "mend the entry")
    corners = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    return _Row(kind, corners, bool(crowd), area[0], _outline(entry.get("segmentation"), where))


def _outline(shape: Any, where: str) -> Outline | None:
    match shape:
        case None | []:
            return None
        case list():
            polygons = [_numbers(polygon) for polygon in shape]
            if all(polygon is not None and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons):
                return Outline(tuple(np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons))
        case {"size": [int(height), int(width)], "counts": str() | list() as counts}:
            runs = unpacked(counts) if isinstance(counts, str) else _numbers(counts)
            fits = 0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE
            whole = runs is not None and all(float(run).is_integer() and run >= 0 for run in runs)
            if runs is not None and whole and fits and sum(runs) == height * width < 2**31:
                return Outline(runs=np.array(runs, dtype=np.int32), size_px=(height, width))
    raise BadInput(f"{where} with a broken mask", "polygons of 3 or more points, or run lengths", "mend the entry")


def _numbers(values: Any, *, nan: bool = False) -> list[float] | None:
    """Return the values if they are a list of finite numbers, else None."""
    if not isinstance(values, list):
        return None
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        # Not `isfinite`: JSON's integers know no bounds.
        if not (abs(value) < _MOST or (nan and value != value)):
            return None
    return values


def _size_px(image: dict[str, Any]) -> tuple[int, int] | None:
    sides = _numbers([image.get("height"), image.get("width")])
    return None if sides is None or min(sides) < 1 else (int(sides[0]), int(sides[1]))


def _together(rows: list[_Row], size_px: tuple[int, int] | None) -> Marks:
    outlines = tuple(row.outline for row in rows)
    return Marks(
        np.array([row.box for row in rows], dtype=np.float64).reshape(-1, 4),
        tuple(row.kind for row in rows),
        np.array([row.crowd for row in rows], dtype=bool),
        np.array([row.area_px for row in rows], dtype=np.float64),
        outlines if any(outline is not None for outline in outlines) else None,
        size_px=size_px,
    )
