"""From encoded bytes to a picture at network size, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Decoder = Literal["pillow", "opencv", "pyav", "turbo-fast-dct", "turbo-plain-chroma", "camera-yuv"]
ResizeLibrary = Literal["pillow", "opencv", "torch"]
Color = Literal["rgb", "yuv444-exact", "yuv444-integer", "nv12-exact", "nv12-integer"]


@dataclass(frozen=True)
class Resize:
    """How pictures change size: `short_side_px` keeps the aspect ratio, `exact_px` (height, width) does not."""

    short_side_px: int | None = None
    exact_px: tuple[int, int] | None = None
    library: ResizeLibrary = "pillow"
    interpolation: str = "bilinear"  # nearest bilinear bicubic lanczos box hamming area; torch: bilinear-antialias, ...
    skip_up_to: float | None = None
    """Leave a picture as it is when its short side is at most this multiple of the crop (for data already resized)."""


@dataclass(frozen=True)
class Letterbox:
    """Shrink or enlarge into `crop_px` with the aspect ratio kept, and fill the rest with the grey level `value`.

    `centered` puts the picture in the middle and rounds its short side (YOLOv5 and later); else it stands in the upper
    left corner and the short side is cut to whole pixels (YOLOX). Without `keep_ratio` it is stretched over the input.
    """

    value: int = 114
    centered: bool = False
    keep_ratio: bool = True


@dataclass(frozen=True)
class Pipeline:
    """Decoder, resize and centre crop of an image model; `crop_px` is (height, width), normally the network's input.

    With `letterbox` there is no crop: `resize` says library and filter alone. `color` is what the decoded picture
    goes through before the resize; `exif` turns it upright as its EXIF orientation says.

    `odd_margin` is where the crop starts when an odd number of pixels is left over: half of it rounded to even, as
    torchvision and timm do, or rounded down, as transformers and most other code does.
    `assumed` says that the model brought no configuration and the defaults of seatrial were used.
    """

    crop_px: tuple[int, int]
    resize: Resize | None = None
    decoder: Decoder = "pillow"
    odd_margin: Literal["even", "down"] = "even"
    assumed: bool = False
    color: Color = "rgb"
    exif: bool = True
    letterbox: Letterbox | None = None
