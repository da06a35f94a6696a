"""Four corruptions against their plain definitions, written here without the methods' shortcuts, and golden means."""

from __future__ import annotations

import colorsys
import math
from io import BytesIO

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seatrial import catalogue
from seatrial.core.chance import generator
from seatrial.core.noise import Corruption
from seatrial.errors import BadInput
from seatrial.noise.brightness import Brightness
from seatrial.noise.gaussian_noise import GaussianNoise
from seatrial.noise.jpeg_compression import JpegCompression
from seatrial.noise.motion_blur import MotionBlur

METHODS = [Brightness, GaussianNoise, JpegCompression, MotionBlur]
SEVERITIES = [1, 2, 3, 4, 5]


def pattern(height: int, width: int) -> np.ndarray:
    """A picture with edges, ramps, black, white and every relation of the channels, made by a formula."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([(x * 7 + y * 3) % 256, (x * y) % 256, (255 - x * 2 + y * 5) % 256], -1).astype(np.uint8)
    picture[:4, :4], picture[-4:, -4:] = 0, 255
    return picture


class AtAngle(np.random.Generator):
    """A generator whose uniform draw is known."""

    def __init__(self, angle: float) -> None:
        super().__init__(np.random.Philox(0))
        self._angle = angle

    def uniform(self, low: float = 0.0, high: float = 1.0, size: object = None) -> float:  # type: ignore[override]
        assert (low, high, size) == (-45, 45, None)
        return self._angle


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=8, deadline=None)
@given(height=st.integers(32, 70), width=st.integers(32, 70), seed=st.integers(0, 2**32))
def test_laws(method: type[Corruption], severity: int, height: int, width: int, seed: int) -> None:
    picture = pattern(height, width)
    before = picture.copy()
    picture.setflags(write=False)
    corruption = method(severity=severity)  # type: ignore[call-arg]
    first = corruption.corrupt(picture, rng=generator(seed, "a"))
    assert first.shape == picture.shape
    assert first.dtype == np.uint8
    assert not np.shares_memory(first, picture)
    assert np.array_equal(picture, before)
    assert np.array_equal(first, corruption.corrupt(picture, rng=generator(seed, "a")))
    assert not np.array_equal(first, picture)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("view", [np.s_[::-1], np.s_[:, ::2], np.s_[:, :, ::-1]])
def test_a_view_gives_what_its_copy_gives(method: type[Corruption], view: object) -> None:
    corruption = method(severity=3)  # type: ignore[call-arg]
    picture = pattern(64, 80)[view]  # type: ignore[index]
    result = corruption.corrupt(picture, rng=generator(1))
    assert np.array_equal(result, corruption.corrupt(picture.copy(), rng=generator(1)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("severity", [0, 6, -1, 2.5, True, "3", None])
def test_severities_out_of_range_are_refused(method: type[Corruption], severity: object) -> None:
    with pytest.raises(BadInput, match="severity"):
        method(severity=severity)  # type: ignore[call-arg]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((32, 32, 3), np.float32),
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((0, 32, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(method: type[Corruption], picture: np.ndarray) -> None:
    with pytest.raises(BadInput, match="uint8 RGB"):
        method(severity=1).corrupt(picture, rng=generator(0))  # type: ignore[call-arg]


# The published parameters, once more by hand: hendrycks/robustness, make_imagenet_c.py.
DEVIATIONS = [0.08, 0.12, 0.18, 0.26, 0.38]
BLURS = [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)]
GAINS = [0.1, 0.2, 0.3, 0.4, 0.5]
QUALITIES = [25, 18, 15, 10, 7]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_is_the_clipped_sum(severity: int) -> None:
    picture = pattern(61, 47)
    result = GaussianNoise(severity=severity).corrupt(picture, rng=generator(5, severity))
    normal = generator(5, severity).standard_normal(picture.shape, dtype=np.float32).astype(np.float64)
    expected = (np.clip(picture / 255 + DEVIATIONS[severity - 1] * normal, 0, 1) * 255).astype(np.uint8)
    off = np.abs(result.astype(int) - expected)
    assert off.max() <= 1  # a fraction cut off on the other side of a whole number
    assert (off > 0).mean() < 1e-3


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_the_published_deviation(severity: int) -> None:
    """On mid gray, the share of clipped values and the spread follow from the normal distribution."""
    sigma = 255 * DEVIATIONS[severity - 1]
    gray = np.full((256, 256, 3), 127, np.uint8)
    result = GaussianNoise(severity=severity).corrupt(gray, rng=generator(9, severity)).astype(float)
    outside = 0.5 * math.erfc(127 / sigma / math.sqrt(2))
    assert (result == 0).mean() == pytest.approx(0.5 * math.erfc(126 / sigma / math.sqrt(2)), abs=0.004)
    assert (result == 255).mean() == pytest.approx(outside, abs=0.004)
    inner = np.abs(result - 127) < sigma / 2
    assert inner.mean() == pytest.approx(math.erf(0.5 / math.sqrt(2)), abs=0.02)


def _shifted(picture: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """imagecorruptions' `shift`: roll, then repeat the border over what was rolled in."""
    out = np.roll(picture, (dy, dx), axis=(0, 1))
    if dx > 0:
        out[:, :dx] = out[:, dx : dx + 1]
    elif dx < 0:
        out[:, dx:] = out[:, dx - 1 : dx]
    if dy > 0:
        out[:dy] = out[dy : dy + 1]
    elif dy < 0:
        out[dy:] = out[dy - 1 : dy]
    return out


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (90, 33)])
@pytest.mark.parametrize("angle", [-45.0, -30.0, -3.3, 0.0, 17.0, 45.0])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_blur_is_the_sum_of_shifts(severity: int, angle: float, size: tuple[int, int]) -> None:
    picture = pattern(*size)
    radius, sigma = BLURS[severity - 1]
    width = 2 * radius + 1
    kernel = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(width)]
    line = width * np.sin(np.deg2rad(angle)), width * np.cos(np.deg2rad(angle))
    expected = np.zeros(picture.shape)
    for i in range(width):
        dy, dx = (-math.ceil(i * part / math.hypot(*line) - 0.5) for part in line)
        if abs(dy) >= size[0] or abs(dx) >= size[1]:
            break
        expected += kernel[i] / sum(kernel) * _shifted(picture, dx, dy).astype(np.float64)
    result = MotionBlur(severity=severity).corrupt(picture, rng=AtAngle(angle))
    assert np.abs(result - np.clip(expected, 0, 255)).max() < 1.0  # cut off, so never more than the sum + 0.001
    assert (result - expected).max() <= 0.002


def test_motion_blur_keeps_even_areas_and_draws_its_angle() -> None:
    even = np.full((64, 64, 3), (7, 200, 255), np.uint8)
    for severity in SEVERITIES:
        assert np.array_equal(MotionBlur(severity=severity).corrupt(even, rng=generator(severity)), even)
    picture = pattern(64, 64)
    results = [MotionBlur(severity=3).corrupt(picture, rng=generator(1, i)).tobytes() for i in range(8)]
    assert len(set(results)) == 8


def _brighter(pixel: list[int], gain: float) -> list[float]:
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
    return [255 * channel for channel in colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + gain))]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_is_a_step_in_hsv(severity: int) -> None:
    levels = [0, 1, 13, 64, 127, 128, 200, 254, 255]
    colors = np.array([(r, g, b) for r in levels for g in levels for b in levels], np.uint8)
    result = Brightness(severity=severity).corrupt(colors.reshape(27, 27, 3), rng=generator(0)).reshape(-1, 3)
    expected = np.array([_brighter(color, GAINS[severity - 1]) for color in colors.tolist()])
    near = np.abs(expected - np.rint(expected)) < 1e-9  # where rounding decides which whole number is cut to
    assert np.array_equal(result[~near], expected[~near].astype(np.uint8))
    assert np.abs(result[near] - expected[near]).max() < 1 + 1e-9


def test_brightness_leaves_white_and_lifts_black_to_gray() -> None:
    ends = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0]]], np.uint8)
    assert Brightness(severity=3).corrupt(ends, rng=generator(0)).tolist() == [
        [[76, 76, 76], [255, 255, 255], [255, 0, 0]]
    ]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_uses_the_published_quality(severity: int) -> None:
    """The quantization tables of the file that OpenCV writes at that quality give the same pixels."""
    picture = cv2.GaussianBlur(pattern(64, 80), (7, 7), 2)
    _, encoded = cv2.imencode(".jpg", picture[:, :, ::-1].copy(), [cv2.IMWRITE_JPEG_QUALITY, QUALITIES[severity - 1]])
    expected = np.array(Image.open(BytesIO(encoded.tobytes())).convert("RGB")).astype(int)
    result = JpegCompression(severity=severity).corrupt(picture, rng=generator(0)).astype(int)
    other = JpegCompression(severity=severity % 5 + 1).corrupt(picture, rng=generator(0)).astype(int)
    assert np.abs(result - expected).mean() < 0.5
    assert np.abs(other - expected).mean() > 1.0


# Means of imagecorruptions 1.1.2 (scikit-image 0.20.0, numpy 1.26.4) on pattern(48, 64), angle 17 degrees.
GOLDEN = {
    "brightness": [138.6615, 149.814, 157.8039, 163.2673, 166.7646],
    "motion_blur": [126.5327, 128.02, 129.9136, 131.4015, 132.7669],
}


@pytest.mark.parametrize("severity", SEVERITIES)
def test_golden_means_of_imagecorruptions(severity: int) -> None:
    picture = pattern(48, 64)
    bright = Brightness(severity=severity).corrupt(picture, rng=generator(0))
    blurred = MotionBlur(severity=severity).corrupt(picture, rng=AtAngle(17.0))
    assert bright.mean() == pytest.approx(GOLDEN["brightness"][severity - 1], abs=0.01)
    assert blurred.mean() == pytest.approx(GOLDEN["motion_blur"][severity - 1], abs=0.01)


# The same of a picture of waves, where fewer values lie on a whole number, which either side may cut to the one below.
GOLDEN_WAVES = {
    "defocus_blur": [123.8338, 123.8403, 123.7852, 125.3517, 125.032],
    "zoom_blur": [122.9208, 122.5007, 122.0787, 121.7461, 121.4616],
    "contrast": [123.9633, 123.9224, 123.8729, 123.9089, 123.9007],
    "gaussian_blur": [123.9158, 123.9698, 124.0626, 124.2144, 124.6242],
    "saturate": [164.5977, 176.1602, 106.5316, 97.8388, 94.3791],
}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", GOLDEN_WAVES)
def test_golden_means_of_imagecorruptions_on_waves(name: str, severity: int) -> None:
    y, x = np.mgrid[:48, :64]
    picture = np.stack([127 + 120 * np.sin(x / (5 + c) + y / 9) for c in range(3)], -1).astype(np.uint8)
    result = catalogue.make("corruption", name, severity=severity).corrupt(picture, rng=generator(0))
    assert result.mean() == pytest.approx(GOLDEN_WAVES[name][severity - 1], abs=0.07)
