"""Pictures with a map of classes, drawn as a second picture, as a data set."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import final

import numpy as np
from jaxtyping import Int64
from PIL import Image

from seatrial.core.sample import Sample
from seatrial.core.truth import IGNORED, ClassMap
from seatrial.data.bad_sample import BadSample
from seatrial.data.decode import image_size_px
from seatrial.data.detection_set import upright_size_px
from seatrial.data.entry_set import EntrySet
from seatrial.data.image_set import Content, bytes_or_none
from seatrial.data.listing import printable_id
from seatrial.data.picture_folder import is_picture, listing_of, one_part
from seatrial.errors import BadInput

_PICTURES = ("images", "jpegimages", "img", "imgs")
_MAPS = ("masks", "labels", "annotations", "segmentationclass", "mask", "label")
_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16L", "I;16B"})


@final
@dataclass(frozen=True, eq=False)
class MaskedEntry:
    """One image file and its map of classes, and where their bytes are."""

    id: str
    content: Content
    map_content: Content


@final
@dataclass(frozen=True, eq=False)
class MaskSet(EntrySet[MaskedEntry]):
    """Image files in order of id (the path below the root, with forward slashes) with maps of classes, read lazily.

    Samples carry a `ClassMap` and the label 0. `n_classes` bounds the classes of the maps, None where the network is
    left to do so; `bad` lists (id, reason) of pictures without a map and maps without a picture.
    """

    class_names: tuple[str, ...] = ()
    n_classes: int | None = None
    label_rule: str = "integers"
    bad: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> Sequence[int]:
        """Zeros: a picture with a map is of no class."""
        return (0,) * len(self.entries)

    def contents(self) -> Iterable[tuple[str, int, bytes | None]]:
        """Return ids and the bytes of pictures and maps."""
        files = ((entry.id, content) for entry in self.entries for content in (entry.content, entry.map_content))
        return ((name, 0, bytes_or_none(content)) for name, content in files)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample; raises BadSample where a file cannot be read or the two do not fit."""
        entry = self.entries[index]
        encoded = entry.content.read()
        classes = read_map(entry.map_content.read())
        size_px = upright_size_px(encoded)
        if classes.shape != size_px:
            shape = f"{classes.shape[1]}x{classes.shape[0]}"
            raise BadSample(f"a mask of {shape} for a picture of {size_px[1]}x{size_px[0]} pixels")
        top = IGNORED if self.n_classes is None else self.n_classes
        outside = classes[(classes >= top) & (classes != IGNORED)]
        if outside.size:
            raise BadSample(f"class {outside[0]} in the mask, the classes are 0 to {top - 1} and {IGNORED} (ignored)")
        return Sample(entry.id, 0, encoded=encoded, target=ClassMap(classes))


def open_masks(
    source: str | Path, *, class_names: Sequence[str] | None = None, n_classes: int | None = None
) -> MaskSet:
    """Open pictures with maps of classes: PNG files of class numbers (grey or with a palette), 255 to be ignored.

    `source` is a folder or tar archive with `images` (or `JPEGImages`) and `masks` (or `labels`, `annotations`,
    `SegmentationClass`) in which a picture and its map have the same name but for the ending; a part such as
    `images/val` may be given by itself. Raises BadInput for data that is missing, ambiguous or of several parts.
    """
    path = Path(source).expanduser()
    listing, _ = listing_of(path)
    pictures, maps = _sorted_out(listing.files)
    if not pictures or not maps:
        lacking = "pictures in 'images'" if not pictures else "maps in 'masks'"
        raise BadInput(f"'{source}' without {lacking}", "images/NAME.jpg with masks/NAME.png", "check --data")
    one_part(str(source), pictures.values())
    entries = [
        MaskedEntry(printable_id(name), listing.files[name], listing.files[maps[key]])
        for key, name in pictures.items()
        if key in maps
    ]
    bad = [(printable_id(name), "no mask of that name") for key, name in pictures.items() if key not in maps]
    bad += [(printable_id(name), "no picture of that name") for key, name in maps.items() if key not in pictures]
    if not entries:
        raise BadInput(f"'{source}' with no mask named like a picture, first '{bad[0][0]}'", "equal names", "rename")
    count = n_classes if n_classes is not None else None if class_names is None else len(class_names)
    ordered = tuple(sorted(entries, key=lambda entry: entry.id))
    return MaskSet(listing.name, ordered, tuple(class_names or ()), count, bad=tuple(sorted(bad)))


def read_map(encoded: bytes) -> Int64[np.ndarray, "height width"]:
    """Return the numbers of the pixels of a PNG, BMP or TIFF file; palettes are ignored.

    Raises BadSample for a broken file and for one in color, whose numbers nobody stated.
    """
    image_size_px(encoded)  # refuses what is no image, and what is too large
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            mode, form = image.mode, image.format
            found = np.array(image).astype(np.int64)
    except Exception as failure:  # broken files make Pillow raise anything
        raise BadSample(f"a corrupt mask ({type(failure).__name__})") from failure
    if mode not in _MODES or form == "JPEG":
        raise BadSample(f"a mask of mode {mode} in a {form} file, not class numbers in a PNG")
    return found


def _sorted_out(files: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return pictures and maps by what their names share: folders but the one that tells them apart, and the stem."""
    found: tuple[dict[str, str], dict[str, str]] = ({}, {})
    doubled: dict[str, list[str]] = defaultdict(list)
    for name in sorted(files):
        path = PurePosixPath(name)
        kinds = [
            (which, at)
            for at, part in enumerate(path.parts[:-1])
            for which, known in enumerate((_PICTURES, _MAPS))
            if part.lower() in known
        ]
        if not kinds or not is_picture(name):
            continue
        which, at = kinds[-1]
        key = "/".join([*path.parts[:at], *path.parts[at + 1 : -1], path.stem])
        if key in found[which]:
            doubled[key] = [found[which][key], name]
        found[which][key] = name
    if doubled:
        first = next(iter(doubled.values()))
        raise BadInput(f"{first[0]} and {first[1]}", "a name for each picture", "remove one of the two")
    return found
