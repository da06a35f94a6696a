"""From encoded bytes to a picture at network size, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Decoder = Literal["pillow", "opencv", "pyav"]
ResizeLibrary = Literal["pillow", "opencv"]


@dataclass(frozen=True)
class Resize:
    """How pictures change size: `short_side_px` keeps the aspect ratio, `exact_px` (height, width) does not."""

    short_side_px: int | None = None
    exact_px: tuple[int, int] | None = None
    library: ResizeLibrary = "pillow"
    interpolation: str = "bilinear"  # nearest bilinear bicubic lanczos box hamming area
    skip_up_to: float | None = None
    """Leave a picture as it is when its short side is at most this multiple of the crop (for data already resized)."""


@dataclass(frozen=True)
class Pipeline:
    """Decoder, resize and centre crop of an image model; `crop_px` is (height, width), normally the network's input.

    `odd_margin` is where the crop starts when an odd number of pixels is left over: half of it rounded to even, as
    torchvision and timm do, or rounded down, as transformers and most other code does.
    `assumed` says that the model brought no configuration and the defaults of seatrial were used.
    """

    crop_px: tuple[int, int]
    resize: Resize | None = None
    decoder: Decoder = "pillow"
    odd_margin: Literal["even", "down"] = "even"
    assumed: bool = False
