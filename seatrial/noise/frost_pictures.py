"""Pictures of ice: those of an installed package, or procedural ones."""

from __future__ import annotations

import math
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from seatrial.core.chance import generator
from seatrial.errors import BadInput
from seatrial.noise.plasma import plasma

_FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg", "frost6.jpg")
_SIDE_PX = 512


@cache
def available_source() -> str:
    """Return "imagecorruptions VERSION" where that package is installed with its six pictures, else "procedural"."""
    folder = _folder()
    if folder is None:
        return "procedural"
    try:
        return f"imagecorruptions {version('imagecorruptions')}"
    except PackageNotFoundError:  # a copy that was not installed has the pictures all the same
        return "imagecorruptions"


@lru_cache(maxsize=24)
def frost_picture(
    source: str, index: int, height: int, width: int, enlarged: float
) -> UInt8[np.ndarray, "tall wide 3"]:
    """Return picture `index` (0 to 5) as RGB, `enlarged` and larger than `height` by `width` in both directions.

    A picture that is smaller than that is enlarged to it first. Source: imagecorruptions 1.1.2, which scales with
    OpenCV's cubic filter.
    """
    plain = _procedural(index) if source == "procedural" else _shipped(index)
    scale = enlarged * max(1.0, height / plain.shape[0], width / plain.shape[1])
    size = math.ceil(plain.shape[1] * scale), math.ceil(plain.shape[0] * scale)
    scaled = cv2.resize(plain, size, interpolation=cv2.INTER_CUBIC)
    scaled.setflags(write=False)
    return scaled


@cache
def _folder() -> Path | None:
    # The package is not imported: it needs libraries that are too old for ours.
    spec = find_spec("imagecorruptions")
    places = [Path(place) / "frost" for place in (spec.submodule_search_locations or ())] if spec else []
    return next((folder for folder in places if all((folder / name).is_file() for name in _FILES)), None)


def _shipped(index: int) -> UInt8[np.ndarray, "tall wide 3"]:
    folder = _folder()
    assert folder is not None
    picture = cv2.imread(str(folder / _FILES[index]), cv2.IMREAD_COLOR)
    if picture is None:
        raise BadInput(f"{folder / _FILES[index]} that OpenCV cannot read", "a picture of frost", "install it again")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _procedural(index: int) -> UInt8[np.ndarray, "tall wide 3"]:
    """Return crystals: ridges of warped plasma at three scales, brighter towards one corner, bluish white.

    Level and spread are near those of photographs of frost: a mean of about 110 and a deviation of about 50 levels.
    """
    rng = generator(0, "frost", index)
    y, x = np.mgrid[:_SIDE_PX, :_SIDE_PX].astype(np.float32)
    bend = [(plasma(_SIDE_PX, 1.9, rng=rng) - 0.5) * 60 for _ in range(2)]
    ridges = np.zeros((_SIDE_PX, _SIDE_PX), np.float32)
    for scale, weight in ((1.0, 0.5), (2.0, 0.3), (4.0, 0.2)):
        field = plasma(_SIDE_PX, 1.6, rng=rng)
        warped = cv2.remap(field, (x + bend[0]) * scale, (y + bend[1]) * scale, cv2.INTER_LINEAR, None, cv2.BORDER_WRAP)
        ridges += np.float32(weight) * (1 - np.abs(2 * warped - 1)) ** 3
    slope = rng.uniform(-1, 1, 2)
    ridges *= 0.75 + 0.5 * ((x * slope[0] + y * slope[1]) / (2 * _SIDE_PX) + 0.5)
    level = (ridges - ridges.mean()) / ridges.std() * 50 + 110
    return np.clip(level[..., None] * np.array((0.92, 1.0, 1.08), np.float32), 0, 255).astype(np.uint8)
