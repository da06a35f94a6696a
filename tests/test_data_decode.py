"""Decoding: every odd kind of picture, alike by every decoder; broken files are refused by name, never fatal."""

from __future__ import annotations

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from seatrial.data.bad_sample import BadSample
from seatrial.data.decode import decode, image_size_px, library_builds
from seatrial.errors import BadInput, NotApplicable

DECODERS = ("pillow", "opencv", "pyav")  # those of JPEG alone: tests/test_data_decode_jpeg.py
RNG = np.random.default_rng(5)
# Smooth, so that the chroma filters of the decoders differ little.
SOURCE = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((64, 48), Image.Resampling.BICUBIC)
GRAY16 = RNG.integers(0, 65536, (48, 64), dtype=np.uint16)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def _with_alpha() -> Image.Image:
    image = SOURCE.convert("RGBA")
    image.putalpha(Image.fromarray(np.arange(48 * 64, dtype=np.uint32).reshape(48, 64).astype(np.uint8)))
    return image


def _png16_rgb() -> bytes:
    wide = np.repeat(GRAY16[:, :, None], 3, axis=2)
    return cv2.imencode(".png", wide)[1].tobytes()


LOSSLESS = {
    "png": (_encoded(SOURCE, "PNG"), np.array(SOURCE)),
    "bmp": (_encoded(SOURCE, "BMP"), np.array(SOURCE)),
    "ppm": (_encoded(SOURCE, "PPM"), np.array(SOURCE)),
    "webp": (_encoded(SOURCE, "WEBP", lossless=True), np.array(SOURCE)),
    "tiff": (_encoded(SOURCE, "TIFF"), np.array(SOURCE)),
    "alpha": (_encoded(_with_alpha(), "PNG"), np.array(SOURCE)),
    "palette": (_encoded(SOURCE.quantize(16), "PNG"), np.array(SOURCE.quantize(16).convert("RGB"))),
    "palette-alpha": (
        _encoded(SOURCE.quantize(16), "PNG", transparency=bytes(range(0, 256, 16))),
        np.array(SOURCE.quantize(16).convert("RGB")),
    ),
    "gif": (_encoded(SOURCE.quantize(16), "GIF"), np.array(SOURCE.quantize(16).convert("RGB"))),
    "gray": (_encoded(SOURCE.convert("L"), "PNG"), np.array(SOURCE.convert("L").convert("RGB"))),
    "gray-alpha": (_encoded(SOURCE.convert("LA"), "PNG"), np.array(SOURCE.convert("L").convert("RGB"))),
    "one-bit": (_encoded(SOURCE.convert("1"), "PNG"), np.array(SOURCE.convert("1").convert("RGB"))),
    "16-bit-gray": (_encoded(Image.fromarray(GRAY16), "PNG"), np.repeat((GRAY16 >> 8)[:, :, None], 3, axis=2)),
    "16-bit-rgb": (_png16_rgb(), np.repeat((GRAY16 >> 8)[:, :, None], 3, axis=2)),
    "16-bit-tiff": (_encoded(Image.fromarray(GRAY16), "TIFF"), np.repeat((GRAY16 >> 8)[:, :, None], 3, axis=2)),
    "16-bit-pgm": (
        b"P5\n64 48\n65535\n" + GRAY16.astype(">u2").tobytes(),
        np.repeat((GRAY16 >> 8)[:, :, None], 3, axis=2),
    ),
}
_NO_PYAV = {"tiff", "16-bit-tiff"}
_UNUSED = ("TIFF", "pyav")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_pictures_come_out_as_they_were(kind: str, decoder: str) -> None:
    encoded, wanted = LOSSLESS[kind]
    if decoder == "pyav" and kind in _NO_PYAV:
        with pytest.raises(NotApplicable, match="TIFF"):
            decode(encoded, decoder)
        return
    pixels = decode(encoded, decoder)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert pixels.shape == (48, 64, 3)
    # PyAV rounds 16 bits to 8 where the others cut them off.
    assert np.abs(pixels.astype(int) - wanted).max() <= (1 if decoder == "pyav" and kind.startswith("16") else 0)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {"subsampling": 0}), ("RGB", {"progressive": True}), ("L", {}), ("CMYK", {})],
    ids=["444", "progressive-420", "gray", "cmyk"],
)
def test_jpeg_is_near_its_source(mode: str, options: dict[str, object], decoder: str) -> None:
    source = SOURCE.convert(mode)
    pixels = decode(_encoded(source, "JPEG", quality=95, **options), decoder)
    assert np.abs(pixels.astype(int) - np.array(source.convert("RGB"))).mean() < 8


def test_pyav_differs_from_pillow_in_chroma_filtering_and_opencv_hardly() -> None:
    encoded = _encoded(SOURCE, "JPEG", quality=95)
    by = {decoder: decode(encoded, decoder).astype(int) for decoder in DECODERS}
    assert np.abs(by["pillow"] - by["opencv"]).max() <= 2
    assert 0.5 < np.abs(by["pillow"] - by["pyav"]).mean() < 10


@pytest.mark.parametrize(
    ("kind", "decoder"),
    [(kind, decoder) for kind in ("JPEG", "PNG", "WEBP", "TIFF") for decoder in DECODERS if (kind, decoder) != _UNUSED],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once_by_each_decoder(kind: str, orientation: int, decoder: str) -> None:
    if kind == "TIFF":
        encoded = _encoded(SOURCE, kind, tiffinfo={0x0112: orientation})
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        encoded = _encoded(SOURCE, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {"quality": 95}))
    wanted = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))))
    pixels = decode(encoded, decoder)
    assert pixels.shape == wanted.shape
    assert np.abs(pixels.astype(int) - wanted).mean() < 8
    assert decoder != "pillow" or np.array_equal(pixels, wanted)


@pytest.mark.parametrize("decoder", DECODERS)
def test_an_animation_gives_its_first_frame(decoder: str) -> None:
    frames = [SOURCE.quantize(16), SOURCE.rotate(180).quantize(16)]
    encoded = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(encoded, decoder), np.array(frames[0].convert("RGB")))


def test_an_animated_webp_is_not_applicable_with_pyav_only() -> None:
    encoded = _encoded(SOURCE, "WEBP", lossless=True, save_all=True, append_images=[SOURCE.rotate(180)])
    for decoder in ("pillow", "opencv"):
        np.testing.assert_array_equal(decode(encoded, decoder), np.array(SOURCE))
    with pytest.raises(NotApplicable, match="WEBP"):
        decode(encoded, "pyav")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "PPM"])
def test_truncated_files_are_bad_for_every_decoder(kind: str, decoder: str) -> None:
    encoded = _encoded(SOURCE.quantize(16) if kind == "GIF" else SOURCE, kind)
    for kept in (len(encoded) // 2, 30, 10, 3):
        with pytest.raises(BadSample):
            decode(encoded[:kept], decoder)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_jpeg_without_its_last_byte_is_bad_for_every_decoder(decoder: str) -> None:
    with pytest.raises(BadSample, match="truncated"):
        decode(_encoded(SOURCE, "JPEG")[:-1], decoder)


@pytest.mark.parametrize("decoder", DECODERS)
def test_what_is_no_picture_is_bad(decoder: str) -> None:
    with pytest.raises(BadSample, match="empty"):
        decode(b"", decoder)
    for content in (b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b"\0" * 1000, b"PK\x03\x04" + b"x" * 100):
        with pytest.raises(BadSample, match="not an image"):
            decode(content, decoder)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_32_bit_pixels_are_refused_by_name(mode: str) -> None:
    encoded = _encoded(SOURCE.convert("L").convert(mode), "TIFF")
    for decoder in ("pillow", "opencv"):
        with pytest.raises(BadSample, match="32-bit"):
            decode(encoded, decoder)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("decoder", DECODERS)
def test_pictures_above_100_megapixels_are_refused_before_decoding(
    decoder: str, recwarn: pytest.WarningsRecorder
) -> None:
    limit_before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(BadSample, match=r"10001x10000 pixels are above the limit of 100 megapixels"):
        decode(_png_header(10_001, 10_000), decoder)
    # At the limit it is decoded, which here finds that the pixels are missing.
    with pytest.raises(BadSample, match="corrupt or truncated"):
        decode(_png_header(10_000, 10_000), decoder)
    assert image_size_px(_png_header(10_000, 10_000)) == (10_000, 10_000)
    assert limit_before == Image.MAX_IMAGE_PIXELS
    assert not list(recwarn)


def test_exactly_100_megapixels_are_decoded() -> None:
    blank = Image.new("1", (10_000, 10_000))
    assert decode(_encoded(blank, "PNG")).shape == (10_000, 10_000, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("orientation", [b"\x00" * 40, b"II*\x00\xff\xff\xff\xff", b"garbage"])
def test_unreadable_exif_leaves_the_pixels_as_stored(orientation: bytes) -> None:
    encoded = _encoded(SOURCE, "JPEG", exif=b"Exif\x00\x00" + orientation)
    plain = decode(_encoded(SOURCE, "JPEG"))
    for decoder in ("pillow", "opencv"):
        np.testing.assert_array_equal(decode(encoded, decoder), plain)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"]),
    decoder=st.sampled_from(DECODERS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damage_gives_a_picture_or_a_bad_sample_and_nothing_else(
    kind: str, decoder: str, changes: list[tuple[float, int]]
) -> None:
    encoded = bytearray(_encoded(SOURCE.quantize(16) if kind == "GIF" else SOURCE, kind))
    for place, value in changes:
        encoded[int(place * len(encoded))] = value
    try:
        pixels = decode(bytes(encoded), decoder)
    except (BadSample, NotApplicable):
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


def test_unknown_decoder_is_refused_with_the_nearest() -> None:
    with pytest.raises(BadInput, match="opencv"):
        decode(LOSSLESS["png"][0], "openvc")


def test_library_builds_name_every_decoder() -> None:
    builds = library_builds()
    assert {"pillow", "pillow-jpeg", "opencv", "opencv-jpeg", "pyav", "libavcodec", "libswscale"} <= set(builds)
    assert all(isinstance(value, str) and value for value in builds.values())
    assert builds["pillow-jpeg"].startswith("libjpeg")
    assert os.linesep not in "".join(builds.values())
