"""Decoders of JPEG alone: what each does otherwise is seen on pictures made for it, and all that is alike is alike."""

from __future__ import annotations

import io
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seatrial.core.pipeline import Decoder, Pipeline
from seatrial.core.sample import Sample
from seatrial.data.bad_sample import BadSample
from seatrial.data.decode import DECODERS, JPEG_DECODERS, decode, library_builds
from seatrial.data.load import load
from seatrial.errors import BadInput, NotApplicable

NO_TURBO = pytest.mark.skipif(find_spec("simplejpeg") is None, reason="simplejpeg is not installed (extra: codecs)")
TURBO = [pytest.param(name, marks=NO_TURBO) for name in ("turbo-fast-dct", "turbo-plain-chroma")]
OURS = [*TURBO, "camera-yuv"]
EVERY = ["pillow", "opencv", "pyav", *OURS]
RNG = np.random.default_rng(5)
SOURCE = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((65, 47), Image.Resampling.BICUBIC)


def _jpeg(image: Image.Image, **options: object) -> bytes:
    written = io.BytesIO()
    image.save(written, "JPEG", **{"quality": 95, **options})
    return written.getvalue()


def _ycc(luma: np.ndarray, blue: np.ndarray, red: np.ndarray, subsampling: int) -> bytes:
    """Return a JPEG file of these planes at full size; 2x2 or 2x1 equal chroma values survive the encoder's mean."""
    return _jpeg(Image.merge("YCbCr", [Image.fromarray(p) for p in (luma, blue, red)]), subsampling=subsampling)


def _difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.abs(first.astype(int) - second.astype(int))


def _rgb(luma: np.ndarray, blue: np.ndarray, red: np.ndarray) -> np.ndarray:
    """Return JFIF 1.02's conversion in float64, as the three sentences of the standard have it."""
    y, u, v = (plane.astype(np.float64) for plane in (luma, blue, red))
    channels = [y + 1.402 * (v - 128), y - 0.344136 * (u - 128) - 0.714136 * (v - 128), y + 1.772 * (u - 128)]
    return np.clip(np.rint(np.stack(channels, axis=2)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("decoder", OURS)
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"subsampling": 0}),
        ("RGB", {"subsampling": 1}),
        ("RGB", {"subsampling": 2}),
        ("RGB", {"progressive": True}),
        ("RGB", {"restart_marker_blocks": 2}),
        ("L", {}),
    ],
    ids=["444", "422", "420", "progressive", "restarts", "gray"],
)
def test_every_kind_of_jpeg_is_near_what_pillow_reads(decoder: Decoder, mode: str, options: dict[str, object]) -> None:
    encoded = _jpeg(SOURCE.convert(mode), **options)
    pixels = decode(encoded, decoder)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (47, 65, 3)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert _difference(pixels, decode(encoded)).mean() < 8
    if mode == "L" or options.get("subsampling") == 0:
        assert _difference(pixels, decode(encoded)).max() <= 8


@pytest.mark.parametrize("decoder", TURBO)
def test_cmyk_is_near_what_pillow_reads(decoder: Decoder) -> None:
    encoded = _jpeg(SOURCE.convert("CMYK"))
    assert _difference(decode(encoded, decoder), decode(encoded)).mean() < 8


@pytest.mark.parametrize(("source", "options"), [("CMYK", {}), ("RGB", {"keep_rgb": True})])
def test_a_camera_has_no_cmyk_and_no_rgb(source: str, options: dict[str, object]) -> None:
    with pytest.raises(NotApplicable, match="YUV path does not take a JPEG file that holds gbr"):
        decode(_jpeg(SOURCE.convert(source), **options), "camera-yuv")


@NO_TURBO
def test_the_fast_dct_differs_little_and_only_in_the_dct() -> None:
    noisy = Image.fromarray(RNG.integers(0, 256, (64, 64), dtype=np.uint8))
    encoded = _jpeg(noisy, quality=90)  # gray: no chroma takes part
    difference = _difference(decode(encoded, "turbo-fast-dct"), decode(encoded))
    assert 0 < difference.mean() < 2
    np.testing.assert_array_equal(decode(encoded, "turbo-plain-chroma"), decode(encoded, "opencv"))


@NO_TURBO
def test_plain_chroma_repeats_a_sample_and_fancy_chroma_does_not() -> None:
    small = RNG.integers(90, 166, (2, 12, 16), dtype=np.uint8)
    blue, red = np.repeat(np.repeat(small, 2, axis=1), 2, axis=2)
    encoded = _ycc(np.full((24, 32), 128, np.uint8), blue, red, subsampling=2)
    plain = decode(encoded, "turbo-plain-chroma").reshape(12, 2, 16, 2, 3)
    assert (plain == plain[:, :1, :, :1]).all()
    for decoder in ("pillow", "turbo-fast-dct"):
        fancy = decode(encoded, decoder).reshape(12, 2, 16, 2, 3)
        assert _difference(fancy, fancy[:, :1, :, :1]).mean() > 2
    # Where nothing is subsampled there is nothing to repeat.
    whole = _ycc(np.full((24, 32), 128, np.uint8), blue, red, subsampling=0)
    np.testing.assert_array_equal(decode(whole, "turbo-plain-chroma"), decode(whole, "opencv"))


def test_camera_chroma_stands_on_even_columns_and_between_rows() -> None:
    """Chroma is a step: linear between samples, the place of each seen by the ramp across the step."""
    luma = np.full((32, 64), 128, np.uint8)
    flat = np.full((32, 64), 128, np.uint8)
    columns, rows = flat.copy(), flat.copy()
    columns[:, 32:] = 188  # between blocks of 8x8 samples, so that the DCT keeps it
    rows[16:] = 188
    # Columns 31 and 32 of luma lie at 15.5 and 16 of chroma: halfway, and on the first sample behind the step.
    across = decode(_ycc(luma, flat, columns, subsampling=2), "camera-yuv")[0, :, 0].astype(int)
    low, high = 128, round(128 + 1.402 * 60)
    np.testing.assert_allclose(across[[29, 30, 31, 32, 33]], [low, low, (low + high) / 2, high, high], atol=2)
    # Rows 15 and 16 lie at 7.25 and 7.75: a quarter and three quarters.
    down = decode(_ycc(luma, flat, rows, subsampling=2), "camera-yuv")[:, 0, 0].astype(int)
    expected = [low, low + (high - low) / 4, low + 3 * (high - low) / 4, high]
    np.testing.assert_allclose(down[14:18], expected, atol=2)
    # JPEG's own place is the middle of the four, so Pillow has a quarter and three quarters across too.
    centered = decode(_ycc(luma, flat, columns, subsampling=2))[0, :, 0].astype(int)
    np.testing.assert_allclose(centered[30:34], expected, atol=2)


def test_camera_conversion_is_jfifs_formula() -> None:
    """Flat blocks of 8x8 keep their level through the DCT, so the planes are known."""
    blocks = RNG.integers(16, 240, (3, 6, 8), dtype=np.uint8)
    planes = np.repeat(np.repeat(blocks, 8, axis=1), 8, axis=2)
    found = decode(_ycc(*planes, subsampling=0), "camera-yuv")
    # Quality 95 rounds a level to 2/8.
    assert _difference(found, _rgb(*planes)).max() <= 1
    gray = _ycc(planes[0], *np.full((2, 48, 64), 128, np.uint8), subsampling=2)
    assert _difference(decode(gray, "camera-yuv"), planes[0][:, :, None]).max() <= 1


@pytest.mark.parametrize("decoder", OURS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_applied_to_what_the_decoder_reads(orientation: int, decoder: Decoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = _jpeg(SOURCE, exif=exif)
    turned, stored = decode(encoded, decoder), decode(encoded, decoder, upright=False)
    np.testing.assert_array_equal(stored, decode(_jpeg(SOURCE), decoder))
    # Pillow's own operations, by the name that EXIF 2.32 gives each value.
    operation = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    image = Image.fromarray(stored)
    np.testing.assert_array_equal(turned, np.array(image if operation is None else image.transpose(operation)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("decoder", ["pillow", "opencv"])
def test_without_exif_every_format_stays_as_stored(decoder: Decoder, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    written, plain = io.BytesIO(), io.BytesIO()
    options = {"TIFF": {"tiffinfo": {0x0112: orientation}}, "WEBP": {"exif": exif, "lossless": True}}
    SOURCE.save(written, kind, **options.get(kind, {"exif": exif}))
    SOURCE.save(plain, kind, **({"lossless": True} if kind == "WEBP" else {}))
    found = decode(written.getvalue(), decoder, upright=False)
    np.testing.assert_array_equal(found, decode(plain.getvalue(), decoder))


def test_the_pipeline_decides_on_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sample = Sample("a", 0, encoded=_jpeg(SOURCE, exif=exif))
    upright, stored = load(Pipeline((40, 40)), sample), load(Pipeline((40, 40), exif=False), sample)
    assert upright.source_size_px == (65, 47)
    assert stored.source_size_px == (47, 65)
    assert not np.array_equal(upright.pixels, stored.pixels)


@pytest.mark.parametrize("decoder", JPEG_DECODERS)
@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_other_formats_are_not_applicable(kind: str, decoder: Decoder) -> None:
    written = io.BytesIO()
    SOURCE.save(written, kind)
    with pytest.raises(NotApplicable, match=f"{decoder} decodes JPEG files alone, this is {kind}"):
        decode(written.getvalue(), decoder)


@pytest.mark.parametrize("decoder", OURS)
def test_what_is_not_whole_is_bad(decoder: Decoder) -> None:
    encoded = _jpeg(SOURCE)
    for kept in (len(encoded) - 1, len(encoded) // 2, 30, 10, 3):
        with pytest.raises(BadSample):
            decode(encoded[:kept], decoder)
    with pytest.raises(BadSample, match="empty"):
        decode(b"", decoder)


@settings(max_examples=60, deadline=None)
@given(
    decoder=st.sampled_from(["camera-yuv", *(["turbo-fast-dct"] if find_spec("simplejpeg") else [])]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damage_gives_a_picture_or_a_bad_sample_and_nothing_else(
    decoder: Decoder, changes: list[tuple[float, int]]
) -> None:
    encoded = bytearray(_jpeg(SOURCE, quality=50))
    for place, value in changes:
        encoded[int(place * len(encoded))] = value
    try:
        pixels = decode(bytes(encoded), decoder)
    except (BadSample, NotApplicable):
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3


@pytest.mark.parametrize("decoder", OURS)
@settings(max_examples=25, deadline=None)
@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), subsampling=st.sampled_from([0, 1, 2]))
def test_every_size_comes_out_whole(decoder: Decoder, size: tuple[int, int], subsampling: int) -> None:
    encoded = _jpeg(SOURCE.resize(size[::-1]), subsampling=subsampling)
    pixels = decode(encoded, decoder)
    assert pixels.shape == (*size, 3)
    assert _difference(pixels, decode(encoded)).mean() < 25


def test_a_missing_codec_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    for decoder in ("turbo-fast-dct", "turbo-plain-chroma"):
        with pytest.raises(BadInput, match=r"simplejpeg is not installed.*pip install 'seatrial\[codecs\]'"):
            decode(_jpeg(SOURCE), decoder)
    assert decode(_jpeg(SOURCE), "camera-yuv").shape == (47, 65, 3)


@pytest.mark.usefixtures("no_pyav")
def test_pyav_that_cannot_be_imported_is_no_bad_file() -> None:
    for decoder in ("pyav", "camera-yuv"):
        with pytest.raises(NotApplicable, match=r"the package av cannot be imported; wanted PyAV .*pip install"):
            decode(_jpeg(SOURCE), decoder)
    assert library_builds()["pyav"] == "absent"
    assert decode(_jpeg(SOURCE), "opencv").shape == (47, 65, 3)


def test_builds_name_libjpeg_turbo_or_its_absence() -> None:
    builds = library_builds()
    assert set(DECODERS) == {"pillow", "opencv", "pyav", *JPEG_DECODERS}
    if find_spec("simplejpeg") is None:
        assert builds["simplejpeg"] == "absent"
    else:
        assert builds["simplejpeg-jpeg"].startswith("libjpeg-turbo 3.")


@pytest.mark.parametrize(
    ("decoder", "mean"),
    [
        ("camera-yuv", 0.197),
        pytest.param("turbo-fast-dct", 1.049, marks=NO_TURBO),
        pytest.param("turbo-plain-chroma", 0.182, marks=NO_TURBO),
    ],
)
def test_photographs_differ_as_measured(decoder: Decoder, mean: float, shared: Path) -> None:
    """Mean difference from Pillow (libjpeg-turbo 3.2.0) over 120 photographs, in levels of 255."""
    photographs = sorted((shared / "imagenet_original_120/images").glob("*.JPEG"))
    found = []
    for path in photographs:
        encoded = path.read_bytes()
        found.append(_difference(decode(encoded, decoder), decode(encoded)).mean())
    assert len(found) == 120
    assert np.mean(found) == pytest.approx(mean, rel=0.05)
