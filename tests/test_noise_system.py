"""System noises change one choice and nothing else; equal pictures are found out."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from seatrial.core.noise import System, SystemNoise
from seatrial.core.pipeline import Pipeline, Resize
from seatrial.core.sample import Picture, Sample
from seatrial.data.decode import decode
from seatrial.data.load import load
from seatrial.data.resize import resize
from seatrial.errors import BadInput, NoNoise, NotApplicable
from seatrial.noise.decoder_noise import DECODER_OPTIONS, DecoderNoise
from seatrial.noise.identity import same_pictures
from seatrial.noise.precision_noise import PRECISION_OPTIONS, PrecisionNoise
from seatrial.noise.resize_noise import RESIZE_OPTIONS, TORCH_RESIZE_OPTIONS, ResizeNoise

PIPELINE = Pipeline((32, 32), Resize(short_side_px=40), decoder="pillow")
SYSTEM = System(PIPELINE)
ALL_RESIZES = (*RESIZE_OPTIONS, *TORCH_RESIZE_OPTIONS)


def sample(height: int = 90, width: int = 70) -> Sample:
    picture = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return Sample("a", 0, encoded=stream.getvalue())


def test_the_eleven_resizes_of_sysnoise() -> None:
    pillow = {f"pillow-{name}" for name in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")}
    opencv = {f"opencv-{name}" for name in ("nearest", "bilinear", "area", "bicubic", "lanczos")}
    assert set(RESIZE_OPTIONS) == pillow | opencv
    assert len(RESIZE_OPTIONS) == 11
    assert set(TORCH_RESIZE_OPTIONS) == {
        f"torch-{name}" for name in ("nearest", "bilinear", "bilinear-antialias", "bicubic", "bicubic-antialias")
    }
    assert set(DECODER_OPTIONS) == {"pillow", "opencv", "pyav", "turbo-fast-dct", "turbo-plain-chroma", "camera-yuv"}
    assert set(PRECISION_OPTIONS) == {"fp16", "bf16", "int8"}


@pytest.mark.parametrize("option", [option for option in ALL_RESIZES if option != "pillow-bilinear"])
def test_resize_changes_library_and_filter_alone(option: str) -> None:
    altered = ResizeNoise(option=option).alter(SYSTEM)
    resize_now = altered.pipeline.resize
    assert resize_now is not None
    assert f"{resize_now.library}-{resize_now.interpolation}" == option
    back = replace(resize_now, library="pillow", interpolation="bilinear")
    assert replace(altered, pipeline=replace(altered.pipeline, resize=back)) == SYSTEM
    assert System(Pipeline((32, 32), Resize(short_side_px=40))) == SYSTEM  # the argument is unchanged


@pytest.mark.parametrize("option", ALL_RESIZES)
def test_every_resize_is_the_loaders_filter_of_that_name(option: str) -> None:
    """The loaded picture is the named filter's result, cut to the crop by hand."""
    system = System(Pipeline((32, 32), Resize(exact_px=(32, 32), library="pillow", interpolation="bilinear")))
    if option == "pillow-bilinear":
        with pytest.raises(NoNoise):
            ResizeNoise(option=option).alter(system)
        return
    encoded = sample().encoded
    assert encoded is not None
    library, _, name = option.partition("-")
    expected = resize(decode(encoded, "pillow"), (32, 32), library, name)  # type: ignore[arg-type]
    assert np.array_equal(load(ResizeNoise(option=option).alter(system).pipeline, sample()).pixels, expected)


@pytest.mark.parametrize("how", [None, Resize()])
def test_a_pipeline_without_resize_has_no_resize_noise(how: Resize | None) -> None:
    with pytest.raises(NotApplicable, match="does not resize"):
        ResizeNoise(option="opencv-area").alter(System(Pipeline((32, 32), how)))


@pytest.mark.parametrize("option", ["opencv", "pyav", "camera-yuv"])
def test_decoder_changes_the_decoder_alone(option: str) -> None:
    altered = DecoderNoise(option=option).alter(SYSTEM)  # type: ignore[arg-type]
    assert altered.pipeline.decoder == option
    assert replace(altered, pipeline=replace(altered.pipeline, decoder="pillow")) == SYSTEM


@pytest.mark.parametrize("option", PRECISION_OPTIONS)
def test_precision_changes_the_arithmetic_alone(option: str) -> None:
    altered = PrecisionNoise(option=option).alter(SYSTEM)  # type: ignore[arg-type]
    assert altered.arithmetic == option
    assert altered.pipeline is SYSTEM.pipeline


@pytest.mark.parametrize(
    ("noise", "system"),
    [
        (ResizeNoise(option="pillow-bilinear"), SYSTEM),
        (DecoderNoise(option="pillow"), SYSTEM),
        (PrecisionNoise(option="bf16"), System(PIPELINE, arithmetic="bf16")),
    ],
)
def test_what_the_system_is_already_is_no_noise(noise: SystemNoise, system: System) -> None:
    with pytest.raises(NoNoise, match="already"):
        noise.alter(system)


@pytest.mark.parametrize("noise", [ResizeNoise, DecoderNoise, PrecisionNoise])
def test_unknown_options_are_refused_with_the_nearest(noise: type[SystemNoise]) -> None:
    with pytest.raises(BadInput, match="unknown"):
        noise(option="directx")  # type: ignore[call-arg]
    with pytest.raises(BadInput, match="did you mean 'pillow-lanczos'"):
        ResizeNoise(option="pillow-lanzcos")


def test_a_skipped_resize_gives_the_same_pictures() -> None:
    skipping = Pipeline((32, 32), Resize(short_side_px=36, skip_up_to=1.15))
    other = ResizeNoise(option="opencv-nearest").alter(System(skipping)).pipeline
    small, large = sample(33, 36), sample(90, 70)
    assert same_pictures(load, skipping, other, [small])
    assert not same_pictures(load, skipping, other, [small, large])


def test_lossless_files_decode_equally_and_that_is_found() -> None:
    opencv = DecoderNoise(option="opencv").alter(SYSTEM).pipeline
    assert same_pictures(load, PIPELINE, opencv, [sample(), sample(50, 60)])


def test_comparison_stops_at_the_first_difference_and_needs_a_sample() -> None:
    seen: list[str] = []

    def count(pipeline: Pipeline, one: Sample) -> Picture:
        seen.append(one.id)
        value = 0 if pipeline.decoder == "pillow" else one.label
        return Picture(np.full((2, 2, 3), value, np.uint8), (2, 2))

    other = replace(PIPELINE, decoder="opencv")
    samples = [Sample("first", 0), Sample("second", 1), Sample("third", 0)]
    assert not same_pictures(count, PIPELINE, other, samples)
    assert seen == ["first", "first", "second", "second"]
    with pytest.raises(BadInput, match="no samples"):
        same_pictures(count, PIPELINE, other, [])


def test_a_different_size_is_a_difference() -> None:
    def shape(pipeline: Pipeline, one: Sample) -> Picture:
        side = 2 if pipeline.decoder == "pillow" else 1
        return Picture(np.zeros((side, 2, 3), np.uint8), (2, 2))

    assert not same_pictures(shape, PIPELINE, replace(PIPELINE, decoder="opencv"), [Sample("a", 0)])
