"""Loaded pictures on disk, bounded, the least recently used dropped first."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import numpy as np

from seatrial.bench.atomic import ASIDE, refusal, write_whole
from seatrial.core.sample import Picture

_HASH_BYTES = 16
_DAMAGED = "damaged.txt"


@final
class PictureCache:
    """Batches of pictures as uint8 arrays in a folder of at most `limit_bytes`; several processes may share it.

    Law: `get` gives what was put under that key, or None. Nothing depends on it but time. What was damaged is
    remembered for `damage`.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._limit = folder, limit_bytes

    def get(self, key: str) -> tuple[list[Picture | None], dict[str, str]] | None:
        """Return the pictures (None: a bad sample) and the reasons of the bad ones, or None where they are not kept."""
        path = self._path(key)
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError:
            return self._lost(path)
        content = stored[:-_HASH_BYTES]
        # The zip's own sums are too late: they are held against a part once all of it was read, not against its shape.
        if not content or _hash(content) != stored[-_HASH_BYTES:]:
            return self._lost(path)
        with contextlib.suppress(OSError):  # dropped meanwhile, or not ours to touch
            os.utime(path)
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            pixels, sizes = file["pixels"], file["sizes"]
            whole, bad = file["whole"], json.loads(bytes(file["bad"]))
        kept = (Picture(array, (int(size[0]), int(size[1]))) for array, size in zip(pixels, sizes, strict=True))
        return [next(kept) if good else None for good in whole], bad

    def put(self, key: str, pictures: Sequence[Picture | None], bad: Mapping[str, str]) -> None:
        """Keep a batch and drop the oldest ones above the limit; pictures of unequal sizes and large ones are not kept.

        Raises BadInput where the folder is full or cannot be written to.
        """
        good = [picture for picture in pictures if picture is not None]
        if len({picture.pixels.shape for picture in good}) != 1:
            return
        sink = io.BytesIO()
        np.savez(
            sink,
            pixels=np.stack([picture.pixels for picture in good]),
            sizes=np.array([picture.source_size_px for picture in good], dtype=np.int64),
            whole=np.array([picture is not None for picture in pictures]),
            bad=np.frombuffer(json.dumps(dict(bad)).encode(), dtype=np.uint8),
        )
        content = sink.getvalue()
        content += _hash(content)
        if len(content) > self._limit:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(content))
            write_whole(self._path(key), content)
        except OSError as error:
            raise refusal(self._folder, error) or error from error

    def _lost(self, path: Path) -> None:
        """Note a damaged entry and let it count as missing: the pictures are loaded and put again."""
        with contextlib.suppress(OSError):  # on a disk that takes nothing the note is the least that is lost
            with (self._folder / _DAMAGED).open("a", encoding="utf-8") as notes:
                notes.write(f"{path.name}\n")
            path.unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        found = []
        for path in (*self._folder.glob("*.npz"), *self._folder.glob(f".*{ASIDE}")):
            with contextlib.suppress(FileNotFoundError):  # another process dropped it
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        room = self._limit - wanted - sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if room >= 0:
                return
            if not path.name.endswith(ASIDE):  # another process may be writing that one
                path.unlink(missing_ok=True)
                room += size

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.npz"


def damage(folder: Path) -> tuple[str, ...]:
    """Return what to tell about the cache in `folder`: a line where entries were found damaged, nothing otherwise."""
    try:
        names = list(dict.fromkeys((folder / _DAMAGED).read_text(encoding="utf-8").split()))
    except FileNotFoundError:
        return ()
    what = "a cached file was" if len(names) == 1 else f"{len(names)} cached files were"
    return (f"{what} damaged, first {names[0]}; the pictures were loaded again from the data",)


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_HASH_BYTES).digest()
