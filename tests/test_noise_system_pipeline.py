"""Noises of color, EXIF, letterbox and hurried decoders, and several at once."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from seatrial.core.noise import System, SystemNoise
from seatrial.core.pipeline import Color, Letterbox, Pipeline, Resize
from seatrial.core.sample import Sample
from seatrial.data.color import through_yuv
from seatrial.data.load import load
from seatrial.errors import BadInput, NoNoise, NotApplicable
from seatrial.noise import decoder_noise
from seatrial.noise.chain import Chain
from seatrial.noise.color_noise import COLOR_OPTIONS, ColorNoise
from seatrial.noise.decoder_noise import DecoderNoise
from seatrial.noise.exif_noise import EXIF_OPTIONS, ExifNoise
from seatrial.noise.identity import same_pictures
from seatrial.noise.letterbox_noise import LETTERBOX_OPTIONS, LetterboxNoise
from seatrial.noise.resize_noise import ResizeNoise

PIPELINE = Pipeline((32, 32), Resize(short_side_px=40))
SYSTEM = System(PIPELINE)
BOXED = System(Pipeline((32, 32), letterbox=Letterbox(value=114)))
PIXELS = np.random.default_rng(3).integers(0, 256, (8, 6, 3), dtype=np.uint8)


def sample(kind: str = "JPEG", orientation: int | None = None, size: tuple[int, int] = (60, 80)) -> Sample:
    image = Image.fromarray(PIXELS).resize(size, Image.Resampling.BICUBIC)
    stream = BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(stream, kind, exif=exif)
    return Sample("a", 0, encoded=stream.getvalue())


def test_options() -> None:
    assert set(COLOR_OPTIONS) == {"yuv444-exact", "yuv444-integer", "nv12-exact", "nv12-integer"}
    assert EXIF_OPTIONS == ("ignored",)
    assert set(LETTERBOX_OPTIONS) == {"0", "114", "128", "centered", "corner", "stretched"}


@pytest.mark.parametrize("option", COLOR_OPTIONS)
def test_color_sends_decoded_pictures_through_yuv(option: Color) -> None:
    whole = System(Pipeline((80, 60)))
    altered = ColorNoise(option=option).alter(whole)
    assert replace(altered, pipeline=replace(altered.pipeline, color="rgb")) == whole
    found = load(altered.pipeline, sample("PNG")).pixels
    np.testing.assert_array_equal(found, through_yuv(load(whole.pipeline, sample("PNG")).pixels, option))
    with pytest.raises(NoNoise, match=f"goes through {option} already"):
        ColorNoise(option=option).alter(altered)


def test_exif_is_ignored_by_pipelines_that_heed_it() -> None:
    altered = ExifNoise(option="ignored").alter(SYSTEM)
    assert altered == replace(SYSTEM, pipeline=replace(PIPELINE, exif=False))
    with pytest.raises(NoNoise, match="already"):
        ExifNoise(option="ignored").alter(altered)
    # Files without the tag, or with the tag of an upright picture, are the same either way.
    upright = [sample(), sample(orientation=1)]
    assert same_pictures(load, PIPELINE, altered.pipeline, upright)
    assert not same_pictures(load, PIPELINE, altered.pipeline, [*upright, sample(orientation=6)])
    assert same_pictures(load, altered.pipeline, altered.pipeline, [sample(orientation=6)])


@pytest.mark.parametrize(
    ("option", "letterbox"),
    [
        ("0", Letterbox(value=0)),
        ("128", Letterbox(value=128)),
        ("7", Letterbox(value=7)),
        ("centered", Letterbox(value=114, centered=True)),
        ("stretched", Letterbox(value=114, keep_ratio=False)),
    ],
)
def test_a_letterbox_changes_in_one_respect(option: str, letterbox: Letterbox) -> None:
    altered = LetterboxNoise(option=option).alter(BOXED)
    assert altered == replace(BOXED, pipeline=replace(BOXED.pipeline, letterbox=letterbox))
    with pytest.raises(NoNoise, match=f"is {option} already"):
        LetterboxNoise(option=option).alter(altered)


def test_what_each_letterbox_noise_does_to_a_picture() -> None:
    tall = sample("PNG", size=(40, 80))  # 40 wide: 32x16 in the corner
    before = load(BOXED.pipeline, tall).pixels
    assert (before[:, 16:] == 114).all()
    black, middle, stretched = (
        load(LetterboxNoise(option=option).alter(BOXED).pipeline, tall).pixels
        for option in ("0", "centered", "stretched")
    )
    assert (black[:, 16:] == 0).all()
    np.testing.assert_array_equal(black[:, :16], before[:, :16])
    np.testing.assert_array_equal(middle[:, 8:24], before[:, :16])
    assert (middle[:, :8] == 114).all()
    assert (middle[:, 24:] == 114).all()
    assert (stretched != 114).any(axis=2).mean() > 0.9
    back = LetterboxNoise(option="corner").alter(LetterboxNoise(option="centered").alter(BOXED))
    assert back == BOXED
    square = sample("PNG", size=(50, 50))  # fills the input, so that nothing changes
    for option in ("0", "centered", "stretched"):
        assert same_pictures(load, BOXED.pipeline, LetterboxNoise(option=option).alter(BOXED).pipeline, [square])


def test_letterbox_noise_without_a_letterbox_is_not_applicable() -> None:
    with pytest.raises(NotApplicable, match="no letterbox"):
        LetterboxNoise(option="0").alter(SYSTEM)
    stretched = LetterboxNoise(option="stretched").alter(BOXED)
    with pytest.raises(NotApplicable, match="nothing is filled"):
        LetterboxNoise(option="0").alter(stretched)


@pytest.mark.parametrize("option", ["256", "-1", "grey", "", "1.5", "²"])
def test_a_letterbox_takes_a_level_or_a_place(option: str) -> None:
    with pytest.raises(BadInput, match="0 to 255, or one of: centered, corner, stretched"):
        LetterboxNoise(option=option)


@pytest.mark.parametrize("noise", [ColorNoise, ExifNoise, DecoderNoise])
def test_unknown_options_are_refused(noise: type[SystemNoise]) -> None:
    with pytest.raises(BadInput, match="unknown"):
        noise(option="directx")  # type: ignore[call-arg]


def test_a_letterboxed_picture_is_resized_with_the_filter_asked_for() -> None:
    altered = ResizeNoise(option="opencv-nearest").alter(BOXED)
    assert altered.pipeline.resize == Resize(library="opencv", interpolation="nearest")
    assert altered.pipeline.letterbox == BOXED.pipeline.letterbox
    assert not same_pictures(load, BOXED.pipeline, altered.pipeline, [sample()])


@pytest.mark.parametrize("option", ["turbo-fast-dct", "turbo-plain-chroma"])
@pytest.mark.skipif(find_spec("simplejpeg") is None, reason="simplejpeg is not installed (extra: codecs)")
def test_hurried_decoders_change_jpeg_files(option: decoder_noise.Decoder) -> None:
    altered = DecoderNoise(option=option).alter(SYSTEM)
    assert altered == replace(SYSTEM, pipeline=replace(PIPELINE, decoder=option))
    assert not same_pictures(load, PIPELINE, altered.pipeline, [sample()])
    with pytest.raises(NotApplicable, match="JPEG files alone"):
        load(altered.pipeline, sample("PNG"))


def test_a_decoder_without_its_codec_is_not_applicable_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoder_noise, "turbo_missing", lambda: BadInput("x is not installed", "it", "run: pip y"))
    with pytest.raises(NotApplicable, match=r"x is not installed.*pip y"):
        DecoderNoise(option="turbo-fast-dct").alter(SYSTEM)
    DecoderNoise(option="camera-yuv").alter(SYSTEM)


def test_a_chain_is_its_parts_one_after_the_other() -> None:
    parts = (
        DecoderNoise(option="opencv"),
        ResizeNoise(option="torch-bilinear"),
        ColorNoise(option="nv12-integer"),
        ExifNoise(option="ignored"),
    )
    altered = Chain(parts=parts).alter(SYSTEM)
    how = Resize(short_side_px=40, library="torch", interpolation="bilinear")
    assert altered.pipeline == Pipeline((32, 32), how, decoder="opencv", color="nv12-integer", exif=False)
    # Each alters a choice of its own, so the order does not count.
    assert Chain(parts=parts[::-1]).alter(SYSTEM) == altered
    assert System(Pipeline((32, 32), Resize(short_side_px=40))) == SYSTEM


def test_a_chain_passes_over_what_the_system_is_already() -> None:
    same, other = DecoderNoise(option="pillow"), ColorNoise(option="yuv444-exact")
    assert Chain(parts=(same, other)).alter(SYSTEM) == other.alter(SYSTEM)
    with pytest.raises(NoNoise, match=r"decodes with pillow already; .*pillow-bilinear already"):
        Chain(parts=(same, ResizeNoise(option="pillow-bilinear"))).alter(SYSTEM)
    with pytest.raises(NotApplicable, match="no letterbox"):
        Chain(parts=(other, LetterboxNoise(option="0"))).alter(SYSTEM)
    with pytest.raises(BadInput, match="at least one"):
        Chain(parts=())
