"""PASCAL VOC's annotations: an XML file for each picture, nobody vouches for it."""

from __future__ import annotations

import math
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from seatrial.data.marks import Marks
from seatrial.errors import BadInput

MAX_XML_BYTES = 4 * 2**20
_MAX_DEPTH = 32


def read_voc(name: str, content: bytes) -> tuple[str, Marks]:
    """Read the objects of one picture; return the name of its file, '' where none is stated, and the marks.

    A `difficult` object is taken as a crowd: what finds it is neither right nor wrong. Raises BadInput, naming file
    and object, for XML that is damaged, deep, above 4 MiB, or that declares a document type or entities (which could
    unfold without end or name other files), and for an object without a name or with broken corners.
    Source: the development kit of PASCAL VOC (Everingham et al. 2010): corners are whole pixels, counted from 1.
    Departures: the kit ignores difficult objects one by one at matching; a crowd takes any number of finds.
    """
    root = _parsed(name, content)
    if root.tag != "annotation":
        raise BadInput(f"{name} with the root <{root.tag[:40]}>", "<annotation>", "check the format")
    kinds: list[str] = []
    boxes: list[list[float]] = []
    crowd: list[bool] = []
    for number, item in enumerate(root.iterfind("object"), start=1):
        where = f"{name}, object {number}"
        kind = (item.findtext("name") or "").strip()
        if not kind:
            raise BadInput(f"{where}, without a name", "a class name", "mend the object")
        found = item.find("bndbox")
        corners = [_number(found, side) for side in ("xmin", "ymin", "xmax", "ymax")]
        if any(math.isnan(corner) for corner in corners):
            raise BadInput(f"{where} ('{kind[:40]}')", "numbers xmin, ymin, xmax, ymax in <bndbox>", "mend the object")
        x1, y1, x2, y2 = corners
        if x2 < x1 or y2 < y1:
            raise BadInput(f"{where} ('{kind[:40]}') from {x1:g},{y1:g} to {x2:g},{y2:g}", "min before max", "mend it")
        # The first pixel is 1, and the last one belongs to the object.
        boxes.append([x1 - 1, y1 - 1, x2, y2])
        kinds.append(kind)
        crowd.append((item.findtext("difficult") or "0").strip() == "1")
    count = len(kinds)
    marks = Marks(
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        tuple(kinds),
        np.array(crowd, dtype=bool),
        np.full(count, np.nan),
        size_px=_size_px(root.find("size")),
    )
    return (root.findtext("filename") or "").strip(), marks


def _size_px(stated: Element | None) -> tuple[int, int] | None:
    height, width = _number(stated, "height"), _number(stated, "width")
    # Some tools write 0 for what they do not know.
    return (int(height), int(width)) if height >= 1 and width >= 1 else None


def _number(parent: Element | None, name: str) -> float:
    """Return a finite number, NaN where there is none."""
    try:
        value = float((parent.findtext(name) if parent is not None else None) or "nan")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _parsed(name: str, content: bytes) -> Element:
    if len(content) > MAX_XML_BYTES:
        raise BadInput(f"{name} of {len(content) >> 20} MiB", f"at most {MAX_XML_BYTES >> 20}", "check the path")
    builder = TreeBuilder()
    depth = 0

    def begin(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise BadInput(f"{name}, nested {depth} deep", "a plain annotation", "do not trust the file")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: Any) -> None:
        raise BadInput(f"{name} with a document type", "a plain annotation", "do not trust the file")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError) as failure:
        raise BadInput(f"{name} is damaged ({failure})", "well-formed XML", "mend the file") from failure
