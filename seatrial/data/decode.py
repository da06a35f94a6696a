"""From the bytes of an image file to uint8 RGB, by the decoder of choice."""

from __future__ import annotations

import io
import re
from importlib.metadata import version
from typing import get_args

import numpy as np
from jaxtyping import UInt8
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from seatrial.core.pipeline import Decoder
from seatrial.data.bad_sample import BadSample
from seatrial.data.decode_camera import decode_camera
from seatrial.data.decode_pyav import PYAV_CODECS, decode_pyav, pyav_builds
from seatrial.data.decode_turbo import decode_turbo, turbo_builds
from seatrial.errors import BadInput, NotApplicable, unknown_name

MAX_PIXELS = 100_000_000
"""Pictures of exactly 100 megapixels are decoded, larger ones are refused before decoding."""

DECODERS: tuple[Decoder, ...] = get_args(Decoder)
JPEG_DECODERS: tuple[Decoder, ...] = ("turbo-fast-dct", "turbo-plain-chroma", "camera-yuv")

# A closed list, found by the first bytes: Pillow itself would try every format it knows, and some of them (EPS)
# run an interpreter. The classes are called directly because Image.open warns from 89 megapixels on and its limit is
# a module variable.
_FORMATS: tuple[tuple[re.Pattern[bytes], type[ImageFile.ImageFile]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    (re.compile(rb"GIF8[79]a"), GifImagePlugin.GifImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
    (re.compile(rb"II\*\x00|MM\x00\*"), TiffImagePlugin.TiffImageFile),
    (re.compile(rb"P[456]\s"), PpmImagePlugin.PpmImageFile),
    (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
)
_INVERSE = {6: 8, 8: 6}
"""The EXIF orientation that undoes another; the other six undo themselves."""


def decode(encoded: bytes, decoder: Decoder = "pillow", *, upright: bool = True) -> UInt8[np.ndarray, "height width 3"]:
    """Decode an image file (JPEG, PNG, GIF, WebP, TIFF, BMP, PNM) to uint8 HWC RGB.

    Alike for every decoder: Pillow reads the header and judges whether the file is whole (the others accept some
    truncated files), `upright` applies the EXIF orientation, alpha is dropped and colour profiles are ignored (as
    torchvision's loader does), of 16 bits the upper 8 are kept, of an animation the first frame.
    What a GIF shows where it is transparent is left to each library.
    Raises BadSample for an empty, corrupt or truncated file, for one above 100 megapixels (before decoding) and for
    32-bit pixels; NotApplicable where the decoder does not take the format (`turbo-*` and `camera-yuv` take JPEG
    alone) or PyAV cannot be imported; BadInput for an unknown decoder and where the package behind `turbo-*` is not
    installed.
    """
    if decoder not in DECODERS:
        raise unknown_name("decoder", decoder, DECODERS)
    # Broad on purpose: broken files make the libraries raise anything from SyntaxError to struct.error, and one bad
    # file must not end a run. Nothing is swallowed: each failure is the reason of a listed sample.
    try:
        return _decode(encoded, decoder, upright)
    except (BadSample, NotApplicable, BadInput):
        raise
    except Exception as failure:
        said = " ".join(str(failure).split())[:200]
        raise BadSample(f"corrupt or truncated ({type(failure).__name__}: {said})") from failure


def image_size_px(encoded: bytes) -> tuple[int, int]:
    """Return (height, width) as the header states it, before any rotation; raises BadSample like `decode`."""
    try:
        width, height = _open(encoded).size
    except BadSample:
        raise
    except Exception as failure:
        raise BadSample(f"corrupt header ({type(failure).__name__})") from failure
    return height, width


def library_builds() -> dict[str, str]:
    """Return the versions of the libraries that decode and resize, and of the JPEG code inside them."""
    import cv2

    found = {
        "pillow": version("pillow"),
        "pillow-jpeg": f"libjpeg-turbo {features.version('libjpeg_turbo')}"
        if features.check_feature("libjpeg_turbo")
        else f"libjpeg {features.version('jpg')}",
        "opencv": cv2.__version__,
    }
    stated = re.search(r"^\s*JPEG:\s*(.+)$", cv2.getBuildInformation(), re.MULTILINE)
    found["opencv-jpeg"] = stated[1].strip() if stated else "unknown"
    return found | pyav_builds() | turbo_builds() | {"torch": version("torch")}


def _open(encoded: bytes) -> ImageFile.ImageFile:
    if not encoded:
        raise BadSample("empty file")
    image_class = next((found for start, found in _FORMATS if start.match(encoded)), None)
    if image_class is None:
        raise BadSample("not an image of a known format (JPEG, PNG, GIF, WebP, TIFF, BMP, PNM)")
    image = image_class(io.BytesIO(encoded))
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadSample(f"{width}x{height} pixels are above the limit of {MAX_PIXELS // 1_000_000} megapixels")
    if width < 1 or height < 1:
        raise BadSample(f"{width}x{height} pixels")
    return image


def _decode(encoded: bytes, decoder: Decoder, upright: bool) -> UInt8[np.ndarray, "height width 3"]:
    image = _open(encoded)
    image_format = str(image.format)
    if decoder == "pyav" and image_format not in PYAV_CODECS:
        raise NotApplicable(f"PyAV is not used for {image_format} files")
    if decoder in JPEG_DECODERS and image_format != "JPEG":
        raise NotApplicable(f"{decoder} decodes JPEG files alone, this is {image_format}")
    # Pillow and OpenCV turn a TIFF by themselves, after which its orientation is gone.
    turned = _orientation(image) if image_format == "TIFF" else 1
    image.load()  # for every decoder: raises where the file is not whole
    if image.mode.startswith("F") or (image.mode.startswith("I") and not _is_16_bit(image)):
        raise BadSample(f"32-bit pixels (mode {image.mode})")
    if decoder == "pillow":
        pixels = _to_rgb(image)
    elif decoder == "opencv":
        pixels = _by_opencv(encoded)
    elif decoder == "pyav":
        pixels = decode_pyav(encoded, image_format)
    elif decoder == "camera-yuv":
        pixels = decode_camera(encoded)
    else:
        plain = decoder == "turbo-plain-chroma"
        pixels = decode_turbo(encoded, fast_dct=not plain, plain_chroma=plain)
    if pixels.shape[:2] != (image.size[1], image.size[0]):
        raise BadSample(f"{decoder} reads {pixels.shape[1]}x{pixels.shape[0]} pixels, the header says {image.size}")
    if image_format == "TIFF":
        return pixels if upright else _turned(pixels, _INVERSE.get(turned, turned))
    return _turned(pixels, _orientation(image)) if upright else pixels


def _is_16_bit(image: ImageFile.ImageFile) -> bool:
    # Pillow keeps a 16-bit PGM in its 32-bit mode.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    if image.mode.startswith("I"):
        upper = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(upper[:, :, None], 3, axis=2)
    if image.mode in ("P", "PA"):
        # By way of RGBA, because a palette with transparency is otherwise converted with a warning.
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _by_opencv(encoded: bytes) -> UInt8[np.ndarray, "height width 3"]:
    import cv2

    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if pixels is None:
        raise BadSample("OpenCV cannot decode it")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _orientation(image: ImageFile.ImageFile) -> int:
    # Unreadable EXIF is no reason to refuse readable pixels: they stay as they are stored.
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turned(pixels: UInt8[np.ndarray, "height width 3"], orientation: int) -> UInt8[np.ndarray, "height width 3"]:
    # EXIF 2.32, tag 0x0112: 5 to 8 exchange rows and columns, the others only mirror.
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
