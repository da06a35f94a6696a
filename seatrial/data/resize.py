"""Change the size of a picture with Pillow's or OpenCV's filters."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from seatrial.core.pipeline import ResizeLibrary
from seatrial.errors import BadInput, unknown_name

INTERPOLATIONS: dict[ResizeLibrary, tuple[str, ...]] = {
    "pillow": ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"),
    "opencv": ("nearest", "bilinear", "bicubic", "area", "lanczos"),
}


def resize(
    pixels: UInt8[np.ndarray, "height width 3"],
    size_hw: tuple[int, int],
    library: ResizeLibrary = "pillow",
    interpolation: str = "bilinear",
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Return `pixels` at `size_hw` (height, width); a picture that has the size already is returned as it is.

    Pillow widens its filters when it makes a picture smaller (antialiasing), OpenCV does so only for `area`.
    Raises BadInput for a filter that the library does not have.
    """
    if library not in INTERPOLATIONS:
        raise unknown_name("resize library", library, INTERPOLATIONS)
    if interpolation not in INTERPOLATIONS[library]:
        others = [name for name, has in INTERPOLATIONS.items() if interpolation in has]
        raise BadInput(
            f"interpolation '{interpolation}' with {library}",
            f"one of: {', '.join(INTERPOLATIONS[library])}",
            f"use {others[0]}, which has it" if others else "pick one of those",
        )
    height, width = size_hw
    if pixels.shape[:2] == (height, width):
        return pixels
    if library == "pillow":
        method = Image.Resampling[interpolation.upper()]
        return np.array(Image.fromarray(pixels).resize((width, height), method))
    import cv2

    methods = {
        "nearest": cv2.INTER_NEAREST,
        "bilinear": cv2.INTER_LINEAR,
        "bicubic": cv2.INTER_CUBIC,
        "area": cv2.INTER_AREA,
        "lanczos": cv2.INTER_LANCZOS4,
    }
    return cv2.resize(pixels, (width, height), interpolation=methods[interpolation])
