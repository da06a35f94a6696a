"""YOLO's annotations: a text file for each picture, a row for each object."""

from __future__ import annotations

import math

import numpy as np

from seatrial.data.marks import Marks, Outline
from seatrial.errors import BadInput

MAX_TEXT_BYTES = 16 * 2**20
_SLACK = 1e-3
"""How far a share may leave 0 to 1: files are written with few digits."""


def read_yolo(name: str, content: bytes) -> Marks:
    """Read rows of `class x_center y_center width height`, or `class x1 y1 x2 y2 x3 y3 ...` (an outline), as shares.

    Raises BadInput, naming file and row, for anything else, values outside 0 to 1, and objects without an area.
    Source: Darknet (Redmon 2016); outlines as Ultralytics writes them.
    """
    if len(content) > MAX_TEXT_BYTES:
        raise BadInput(f"{name} of {len(content) >> 20} MiB", f"at most {MAX_TEXT_BYTES >> 20}", "check the path")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise BadInput(f"{name} is not UTF-8 text", "rows of numbers", "check the file") from None
    kinds: list[str] = []
    boxes: list[tuple[float, float, float, float]] = []
    outlines: list[Outline | None] = []
    for number, line in enumerate(lines, start=1):
        cells = line.split()
        if not cells:
            continue
        where = f"{name}, row {number}: {line.strip()[:80]!r}"
        values = _shares(cells[1:], where)
        if not (cells[0].isascii() and cells[0].isdigit() and len(cells[0]) <= 6):
            raise BadInput(where, "a class index first", "mend the row")
        if len(values) == 4:
            x, y, width, height = values
            boxes.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
            outlines.append(None)
        elif len(values) >= 6 and len(values) % 2 == 0:
            points = np.array(values, dtype=np.float64).reshape(-1, 2)
            (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
            boxes.append((x1, y1, x2, y2))
            outlines.append(Outline((points,)))
        else:
            raise BadInput(where, "a class, then 4 numbers or the 3 or more points of an outline", "mend the row")
        if boxes[-1][2] <= boxes[-1][0] or boxes[-1][3] <= boxes[-1][1]:
            raise BadInput(where, "an object with an area", "mend or remove the row")
        kinds.append(str(int(cells[0])))
    corners = np.clip(np.array(boxes, dtype=np.float64).reshape(-1, 4), 0, 1)
    count = len(kinds)
    return Marks(
        corners,
        tuple(kinds),
        np.zeros(count, dtype=bool),
        np.full(count, np.nan),
        tuple(outlines) if any(outline is not None for outline in outlines) else None,
        relative=True,
    )


def _shares(cells: list[str], where: str) -> list[float]:
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        raise BadInput(where, "numbers", "mend the row") from None
    if not all(math.isfinite(value) and -_SLACK <= value <= 1 + _SLACK for value in values):
        raise BadInput(where, "shares of the picture from 0 to 1", "divide by its width and height")
    return values
