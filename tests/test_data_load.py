"""Resize, crop and load: torchvision and timm are the oracles for Pillow, an area mean for OpenCV."""

from __future__ import annotations

import io
import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seatrial.core.pipeline import Pipeline, Resize
from seatrial.core.sample import Sample
from seatrial.data.bad_sample import BadSample
from seatrial.data.load import default_pipeline, load, load_input, resized_size_px, to_input
from seatrial.data.resize import INTERPOLATIONS, resize
from seatrial.errors import BadInput


def _picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _sample(pixels: np.ndarray) -> Sample:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG", compress_level=1)
    return Sample("x", 0, encoded=written.getvalue())


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    short_px=st.integers(1, 60),
    crop_px=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_resize_and_crop_equal_torchvision_bit_for_bit(
    interpolation: str, height: int, width: int, short_px: int, crop_px: tuple[int, int]
) -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="the oracle is torchvision (extra: vision)")
    pixels = _picture(height, width)
    wanted = transforms.Compose(
        [
            transforms.Resize(short_px, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(crop_px),
        ]
    )(Image.fromarray(pixels))
    pipeline = Pipeline(crop_px, Resize(short_side_px=short_px, interpolation=interpolation))
    found = load(pipeline, _sample(pixels))
    np.testing.assert_array_equal(found.pixels, np.array(wanted))
    assert found.source_size_px == (height, width)
    as_tensor = transforms.ToTensor()(wanted)
    torch.testing.assert_close(to_input(found), as_tensor, rtol=0, atol=0)


@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_timm_evaluation_transforms_are_pipelines(crop_pct: float, crop_mode: str) -> None:
    timm_data = pytest.importorskip("timm.data", reason="the oracle is timm (extra: vision)")
    pixels = _picture(75, 101)
    wanted = timm_data.create_transform(
        (3, 64, 64), interpolation="bicubic", crop_pct=crop_pct, crop_mode=crop_mode, mean=(0, 0, 0), std=(1, 1, 1)
    )(Image.fromarray(pixels))
    side_px = math.floor(64 / crop_pct)
    how = (
        Resize(short_side_px=side_px, interpolation="bicubic")
        if crop_mode == "center"
        else Resize(exact_px=(side_px, side_px), interpolation="bicubic")
    )
    torch.testing.assert_close(load_input(Pipeline((64, 64), how), _sample(pixels)), wanted, rtol=0, atol=0)


def test_default_pipeline_resizes_to_eight_sevenths_and_says_so() -> None:
    pipeline = default_pipeline((224, 224))
    assert pipeline == Pipeline((224, 224), Resize(short_side_px=256, skip_up_to=1.15), assumed=True)
    assert default_pipeline((32, 32)).resize == Resize(short_side_px=37, skip_up_to=1.15)


@pytest.mark.parametrize(
    ("source_px", "wanted_px"),
    [
        ((227, 227), (227, 227)),  # already resized: only cropped
        ((257, 400), (257, 400)),  # 257 is below 1.15 * 224 = 257.6
        ((258, 400), (256, 396)),
        ((500, 375), (341, 256)),
        ((224, 224), (224, 224)),
        ((64, 64), (224, 224)),  # does not cover the crop: enlarged until it does
        ((100, 300), (224, 672)),
        ((300, 100), (672, 224)),
    ],
)
def test_pictures_near_the_input_are_cropped_only(source_px: tuple[int, int], wanted_px: tuple[int, int]) -> None:
    assert resized_size_px(default_pipeline((224, 224)), source_px) == wanted_px


def test_without_a_resize_the_center_is_cut_out() -> None:
    pixels = _picture(9, 12)
    found = load(Pipeline((5, 6)), _sample(pixels)).pixels
    np.testing.assert_array_equal(found, pixels[2:7, 3:9])


@pytest.mark.parametrize(("margin", "top", "left"), [("even", 2, 4), ("down", 1, 3)])
def test_an_odd_margin_is_halved_as_the_pipeline_says(margin: Literal["even", "down"], top: int, left: int) -> None:
    pixels = _picture(8, 12)  # 3 and 7 are left over
    found = load(Pipeline((5, 5), odd_margin=margin), _sample(pixels)).pixels
    np.testing.assert_array_equal(found, pixels[top : top + 5, left : left + 5])
    if margin == "down":
        oracle = pytest.importorskip("transformers.image_transforms").center_crop(pixels, (5, 5))
        np.testing.assert_array_equal(found, oracle)


@settings(max_examples=60, deadline=None)
@given(
    source_px=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    crop_px=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    skip_up_to=st.sampled_from([None, 1.0, 1.15, 2.0]),
)
def test_a_picture_left_as_it_is_covers_the_crop_and_keeps_its_shape(
    source_px: tuple[int, int], crop_px: tuple[int, int], skip_up_to: float | None
) -> None:
    pipeline = Pipeline(crop_px, Resize(skip_up_to=skip_up_to))
    height, width = resized_size_px(pipeline, source_px)
    assert height >= crop_px[0]
    assert width >= crop_px[1]
    if source_px[0] >= crop_px[0] and source_px[1] >= crop_px[1]:
        assert (height, width) == source_px
    else:
        scale = max(crop_px[0] / source_px[0], crop_px[1] / source_px[1])
        assert abs(height - source_px[0] * scale) < 1 + 1e-9
        assert abs(width - source_px[1] * scale) < 1 + 1e-9


def test_a_resize_below_the_crop_is_padded_with_black_as_torchvision_does() -> None:
    found = load(Pipeline((8, 8), Resize(short_side_px=4)), _sample(np.full((10, 10, 3), 255, np.uint8))).pixels
    assert found[2:6, 2:6].min() == 255
    assert found.sum() == 4 * 4 * 3 * 255


def test_a_long_thin_picture_cannot_exhaust_the_memory() -> None:
    with pytest.raises(BadSample, match="would be resized"):
        load(default_pipeline((224, 224)), _sample(np.zeros((1, 20_000, 3), np.uint8)))


def test_array_samples_pass_through_and_round_to_pictures() -> None:
    array = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
    sample = Sample("a", 1, array=array)
    pipeline = Pipeline((4, 5), Resize(short_side_px=99))
    np.testing.assert_array_equal(load_input(pipeline, sample).numpy(), array)
    picture = load(pipeline, sample)
    assert np.abs(picture.pixels.transpose(2, 0, 1) / 255 - array).max() <= 0.5 / 255 + 1e-6
    exact = Sample("b", 1, array=to_input(picture).numpy())
    np.testing.assert_array_equal(load(pipeline, exact).pixels, picture.pixels)
    load_input(pipeline, sample).zero_()
    assert array.max() > 0
    with pytest.raises(BadSample, match="3x4x5, the network takes 3x8x8"):
        load(Pipeline((8, 8)), sample)
    with pytest.raises(BadSample):
        load(pipeline, Sample("c", 0))


@pytest.mark.parametrize(
    ("library", "interpolation"), [(lib, name) for lib in INTERPOLATIONS for name in INTERPOLATIONS[lib]]
)
def test_every_filter_keeps_a_flat_picture_flat_and_its_argument_unchanged(library: str, interpolation: str) -> None:
    flat = np.full((20, 30, 3), (7, 130, 250), np.uint8)
    before = flat.copy()
    found = resize(flat, (11, 47), library, interpolation)
    assert found.shape == (11, 47, 3)
    assert (found == (7, 130, 250)).all()
    np.testing.assert_array_equal(flat, before)
    assert resize(flat, (20, 30), library, interpolation) is flat


def test_filters_are_told_apart_by_aliasing() -> None:
    pixels = _picture(64, 64)
    means = pixels.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3))
    for library, interpolation in (("pillow", "box"), ("opencv", "area")):
        assert np.abs(resize(pixels, (8, 8), library, interpolation) - means).max() <= 1.01  # two roundings
    # OpenCV's bilinear looks at four pixels whatever the scale, Pillow's at all.
    spread = {lib: resize(pixels, (8, 8), lib, "bilinear").std() for lib in INTERPOLATIONS}
    assert spread["opencv"] > 2 * spread["pillow"]
    np.testing.assert_array_equal(resize(pixels, (8, 8), "opencv", "nearest"), pixels[::8, ::8])


def test_a_filter_that_a_library_lacks_is_refused_with_the_one_that_has_it() -> None:
    pixels = _picture(4, 4)
    with pytest.raises(BadInput, match=r"'area' with pillow.*use opencv"):
        resize(pixels, (2, 2), "pillow", "area")
    with pytest.raises(BadInput, match=r"'hamming' with opencv.*use pillow"):
        resize(pixels, (2, 2), "opencv", "hamming")
    with pytest.raises(BadInput, match="pick one"):
        resize(pixels, (2, 2), "opencv", "magic")
    with pytest.raises(BadInput, match="resize library 'pilow'"):
        resize(pixels, (2, 2), "pilow", "box")


def test_a_wrong_filter_is_refused_even_where_nothing_is_resized() -> None:
    with pytest.raises(BadInput, match="area"):
        load(Pipeline((4, 4), Resize(short_side_px=4, interpolation="area")), _sample(_picture(4, 4)))
