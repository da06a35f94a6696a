"""Change the size of a picture with Pillow's, OpenCV's or PyTorch's filters."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from seatrial.core.pipeline import ResizeLibrary
from seatrial.errors import BadInput, unknown_name

INTERPOLATIONS: dict[ResizeLibrary, tuple[str, ...]] = {
    "pillow": ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"),
    "opencv": ("nearest", "bilinear", "bicubic", "area", "lanczos"),
    "torch": ("nearest", "bilinear", "bilinear-antialias", "bicubic", "bicubic-antialias"),
}


def resize(
    pixels: UInt8[np.ndarray, "height width 3"],
    size_hw: tuple[int, int],
    library: ResizeLibrary = "pillow",
    interpolation: str = "bilinear",
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Return `pixels` at `size_hw` (height, width); a picture that has the size already is returned as it is.

    Pillow widens its filters when it makes a picture smaller (antialiasing), OpenCV does so only for `area`, PyTorch
    where the name says so. PyTorch resizes uint8 as torchvision's tensors are resized where the processor has AVX2:
    in whole numbers, rounded and clipped after each axis (elsewhere torchvision goes through float32 for bilinear).
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
    if library == "torch":
        return _by_torch(pixels, size_hw, interpolation)
    import cv2

    methods = {
        "nearest": cv2.INTER_NEAREST,
        "bilinear": cv2.INTER_LINEAR,
        "bicubic": cv2.INTER_CUBIC,
        "area": cv2.INTER_AREA,
        "lanczos": cv2.INTER_LANCZOS4,
    }
    return cv2.resize(pixels, (width, height), interpolation=methods[interpolation])


def _by_torch(
    pixels: UInt8[np.ndarray, "height width 3"], size_hw: tuple[int, int], interpolation: str
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    mode = interpolation.removesuffix("-antialias")
    if not pixels.flags.writeable:
        pixels = pixels.copy()  # PyTorch warns about a tensor that it could write to
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(
        planes,
        size=size_hw,
        mode=mode,
        align_corners=None if mode == "nearest" else False,
        antialias=mode != interpolation,
    )
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
