"""Pictures with annotated objects as a data set: encoded bytes, read when asked for."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Int64
from PIL import Image

from seatrial.core.sample import Sample
from seatrial.data.bad_sample import BadSample
from seatrial.data.decode import image_size_px
from seatrial.data.entry_set import EntrySet
from seatrial.data.image_set import Content
from seatrial.data.marks import Marks


@final
@dataclass(frozen=True, eq=False)
class MarkedEntry:
    """One image file, where its bytes are, and what is marked in it, with the label of each object."""

    id: str
    content: Content
    marks: Marks
    classes: Int64[np.ndarray, " objects"]


@final
@dataclass(frozen=True, eq=False)
class DetectionSet(EntrySet[MarkedEntry]):
    """Annotated image files in order of id (the path below the root, with forward slashes), read lazily.

    Samples carry `Objects`, with masks where `masks`, and the label 0. `class_names[label]` names a label;
    `label_rule` says how the file's classes became labels; `bad` lists (id, reason) of pictures that could not be
    found; `notes` what else was left out or assumed.
    """

    class_names: tuple[str, ...]
    label_rule: str
    masks: bool = False
    bad: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> Sequence[int]:
        """Zeros: a picture with objects is of no class."""
        return (0,) * len(self.entries)

    def contents(self) -> Iterable[tuple[str, int, bytes | None]]:
        """Return ids, objects and the bytes of files."""
        return ((entry.id, int(self.masks), _bytes_or_none(entry)) for entry in self.entries)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample; raises BadSample where its file cannot be read or does not fit its annotation."""
        entry = self.entries[index]
        encoded = entry.content.read()
        objects = entry.marks.objects(entry.classes, upright_size_px(encoded), masks=self.masks)
        return Sample(entry.id, 0, encoded=encoded, target=objects)


def upright_size_px(encoded: bytes) -> tuple[int, int]:
    """Return (height, width) as a viewer shows the picture, by its header and EXIF orientation.

    Raises BadSample where the header is broken.
    """
    height, width = image_size_px(encoded)
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception:  # unreadable EXIF: the pixels stay as they are stored, as `decode` leaves them
        turned = False
    return (width, height) if turned else (height, width)


def _bytes_or_none(entry: MarkedEntry) -> bytes | None:
    try:
        return entry.classes.tobytes() + entry.marks.content() + entry.content.read()
    except BadSample:
        return None
