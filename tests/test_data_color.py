"""RGB to YUV and back: numbers worked by hand, the formulas in fractions, and the figures of a whole picture."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from math import floor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seatrial.core.pipeline import Color, Pipeline, Resize
from seatrial.core.sample import Sample
from seatrial.data.chroma import box_down, linear_up, nearest_up
from seatrial.data.color import COLORS, from_yuv, through_yuv, to_yuv
from seatrial.data.load import load
from seatrial.errors import BadInput

YUV = [color for color in COLORS if color != "rgb"]
LEVEL = st.integers(0, 255)


def _pixel(*values: int) -> np.ndarray:
    return np.array([[values]], dtype=np.uint8)


def _half_up(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))


def _decimal(text: str) -> list[Fraction]:
    return [Fraction(part) for part in text.split()]


@settings(max_examples=300, deadline=None)
@given(st.tuples(LEVEL, LEVEL, LEVEL))
def test_to_yuv_is_the_papers_formula(rgb: tuple[int, int, int]) -> None:
    """SysNoise, appendix A, in fractions."""
    rows = ("0.256788 0.504129 0.097906", "-0.148223 -0.290993 0.439216", "0.439216 -0.367788 -0.071427")
    wanted = [
        _half_up(sum(a * b for a, b in zip(_decimal(row), rgb))) + start for row, start in zip(rows, (16, 128, 128))
    ]
    assert [int(plane[0, 0]) for plane in to_yuv(_pixel(*rgb))] == wanted


@settings(max_examples=300, deadline=None)
@given(st.tuples(LEVEL, LEVEL, LEVEL))
def test_from_yuv_is_the_papers_formulas(yuv: tuple[int, int, int]) -> None:
    planes = [np.array([[value]], dtype=np.uint8) for value in yuv]
    c, d, e = yuv[0] - 16, yuv[1] - 128, yuv[2] - 128
    luma, red, green_d, green_e, blue = _decimal("1.164383 1.596027 0.391762 0.812968 2.017232")
    exact = [luma * c + red * e, luma * c - green_d * d - green_e * e, luma * c + blue * d]
    clipped = [min(255, max(0, _half_up(value))) for value in exact]
    assert from_yuv(*planes, exact=True)[0, 0].tolist() == clipped
    integer = [298 * c + 409 * e + 128, 298 * c - 100 * d - 208 * e + 128, 298 * c + 516 * d + 128]
    assert from_yuv(*planes, exact=False)[0, 0].tolist() == [min(255, max(0, value // 256)) for value in integer]


@pytest.mark.parametrize(
    ("rgb", "yuv", "exact", "integer"),
    [
        ((0, 0, 0), (16, 128, 128), (0, 0, 0), (0, 0, 0)),
        ((255, 255, 255), (235, 128, 128), (255, 255, 255), (255, 255, 255)),
        # 0.256788 * 255 = 65.48, -0.148223 * 255 = -37.80, 0.439216 * 255 = 112.00; back, R = 75.68 + 178.76 = 254.44,
        # G = 75.68 + 14.89 - 91.05 < 0; in 256ths R = (19370 + 45808 + 128) / 256 = 255.1
        ((255, 0, 0), (81, 90, 240), (254, 0, 0), (255, 0, 0)),
        ((128, 128, 128), (126, 128, 128), (128, 128, 128), (128, 128, 128)),
    ],
)
def test_numbers_worked_by_hand(
    rgb: tuple[int, int, int], yuv: tuple[int, int, int], exact: tuple[int, int, int], integer: tuple[int, int, int]
) -> None:
    assert tuple(int(plane[0, 0]) for plane in to_yuv(_pixel(*rgb))) == yuv
    assert tuple(through_yuv(_pixel(*rgb), "yuv444-exact")[0, 0]) == exact
    assert tuple(through_yuv(_pixel(*rgb), "yuv444-integer")[0, 0]) == integer


@pytest.mark.parametrize("color", ["yuv444-exact", "yuv444-integer"])
def test_a_round_trip_changes_a_value_by_two_fifths(color: Color) -> None:
    """Every 3rd level of each channel; measured on photographs: 0.40 on average, 2 at most."""
    levels = np.arange(0, 256, 3, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=3).reshape(86, -1, 3)
    difference = np.abs(through_yuv(cube, color).astype(int) - cube)
    assert difference.max() == 2
    assert difference.mean() == pytest.approx(0.40, abs=0.015)


def test_photographs_change_as_measured(shared: Path) -> None:
    found = {}
    pictures = [
        np.array(Image.open(path).convert("RGB"))
        for path in sorted((shared / "imagenet_original_120/images").glob("*.JPEG"))[:5]
    ]
    assert pictures
    for color in YUV:
        found[color] = np.mean([np.abs(through_yuv(one, color).astype(int) - one).mean() for one in pictures])
    assert found["yuv444-exact"] == pytest.approx(0.40, abs=0.03)
    assert found["nv12-exact"] > 2 * found["yuv444-exact"]  # the missing chroma outweighs the rounding


@pytest.mark.parametrize("color", YUV)
@settings(max_examples=40, deadline=None)
@given(size=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 99))
def test_shape_type_and_argument_stay(color: Color, size: tuple[int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    kept = pixels.copy()
    pixels.setflags(write=False)
    found = through_yuv(pixels, color)
    assert found.shape == (*size, 3)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert not np.shares_memory(found, pixels)
    np.testing.assert_array_equal(pixels, kept)
    # Four-four-four works pixel by pixel; nv12 by 2x2, and on flat blocks like four-four-four.
    if color.startswith("yuv444"):
        np.testing.assert_array_equal(through_yuv(kept[::-1], color), found[::-1])
    else:
        flat = np.repeat(np.repeat(kept, 2, axis=0), 2, axis=1)
        plain = through_yuv(flat, "yuv444-exact" if color.endswith("exact") else "yuv444-integer")
        np.testing.assert_array_equal(through_yuv(flat, color), plain)


def test_rgb_is_left_alone_and_unknown_colors_are_refused() -> None:
    pixels = _pixel(1, 2, 3)
    assert through_yuv(pixels, "rgb") is pixels
    with pytest.raises(BadInput, match=r"unknown color 'nv21-exact'.*did you mean 'nv12-exact'"):
        through_yuv(pixels, "nv21-exact")  # type: ignore[arg-type]


def test_nv12_averages_two_by_two_and_repeats() -> None:
    plane = np.array([[0, 1, 10], [1, 0, 20], [7, 8, 255]], dtype=np.uint8)
    # 2 / 4 = 0.5 up; odd borders repeated: (10 + 10 + 20 + 20) / 4, (7 + 8 + 7 + 8) / 4 = 7.5 up, 255
    small = box_down(plane)
    assert small.tolist() == [[1, 15], [8, 255]]
    assert nearest_up(small, (3, 3)).tolist() == [[1, 1, 15], [1, 1, 15], [8, 8, 255]]
    assert box_down(np.full((5, 7), 255, np.uint8)).tolist() == [[255] * 4] * 3


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    factors=st.sampled_from([(1, 1), (1, 2), (2, 2), (2, 1), (1, 4)]),
)
def test_linear_chroma_is_interpolation_at_the_stated_places(size: tuple[int, int], factors: tuple[int, int]) -> None:
    """NumPy's interp along columns, then rows, at the places that the docstring states."""
    small = tuple(-(-side // factor) for side, factor in zip(size, factors))
    plane = np.random.default_rng(sum(size)).integers(0, 256, small, dtype=np.uint8)
    columns = np.arange(small[1]) * factors[1]
    rows = np.arange(small[0]) * factors[0] + (factors[0] - 1) / 2
    wide = np.stack([np.interp(np.arange(size[1]), columns, row) for row in plane])
    wanted = np.stack([np.interp(np.arange(size[0]), rows, column) for column in wide.T], axis=1)
    found = linear_up(plane, size, factors)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)  # halves, quarters and eighths of bytes are exact


def test_the_pipeline_converts_what_is_decoded_before_it_resizes() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (31, 40, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    sample = Sample("a", 0, encoded=stream.getvalue())
    plain = Pipeline((16, 16), Resize(exact_px=(16, 16)))
    for color in YUV:
        wanted = np.array(Image.fromarray(through_yuv(pixels, color)).resize((16, 16), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(load(replace(plain, color=color), sample).pixels, wanted)
