"""Corruptions with chance against their plain definitions, fed with the draws that the methods make."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from seatrial.bench.question import options
from seatrial.core.chance import generator
from seatrial.errors import BadInput
from seatrial.noise.as_stored import AsStored
from seatrial.noise.contrast import Contrast
from seatrial.noise.elastic_transform import ElasticTransform
from seatrial.noise.fog import Fog
from seatrial.noise.gaussian_noise import GaussianNoise
from seatrial.noise.glass_blur import GlassBlur, _meetings
from seatrial.noise.plasma import plasma
from seatrial.noise.smoothing import smoothed
from seatrial.noise.snow import Snow
from seatrial.noise.spatter import Spatter

SEVERITIES = [1, 2, 3, 4, 5]


def photograph(height: int, width: int) -> np.ndarray:
    """A smooth picture with some edges and texture."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / (5 + c) + y / 9) for c in range(3)], -1)
    picture = (127 + 90 * waves + generator(0, height, width).normal(0, 6, waves.shape)).clip(0, 255).astype(np.uint8)
    picture[height // 3 : height // 2, width // 4 : width // 2] = (250, 30, 90)
    return picture


def cut_off(scale: np.ndarray) -> np.ndarray:
    return (np.clip(scale, 0, 1) * 255).astype(np.uint8)


def far(result: np.ndarray, expected: np.ndarray) -> tuple[int, float]:
    """Return the largest difference in levels, and the share of values that differ by more than one."""
    off = np.abs(result.astype(int) - expected.astype(int))
    return int(off.max()), float((off > 1).mean())


# Published parameters, once more by hand: hendrycks/robustness, make_imagenet_c.py.
GLASS = [(0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)]
SNOW = [
    (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
]
FOG = [(1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)]
ELASTIC = [(2.0, 0.7, 0.1), (2.0, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)]
SPATTER = [
    (0.65, 0.3, 4, 0.69, 0.6),
    (0.65, 0.3, 3, 0.68, 0.6),
    (0.65, 0.3, 2, 0.68, 0.5),
    (0.65, 0.3, 1, 0.65, 1.5),
    (0.67, 0.4, 1, 0.65, 1.5),
]


@pytest.mark.parametrize("mode", ["reference", "clean"])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_glass_blur_is_blur_scan_blur(severity: int, mode: str) -> None:
    sigma, reach, passes = GLASS[severity - 1]
    picture = photograph(50, 41)
    blurred = ndimage.gaussian_filter(picture / 255, (sigma, sigma, 0), mode="nearest", truncate=4.0)
    pixels = (blurred * 255 + 1e-3).astype(np.uint8)
    rng = generator(1, severity)
    for _ in range(passes):
        _, met = _meetings(50, 41, reach, rng)
        others = iter(met)
        for row in range(50 - reach, reach, -1):
            for column in range(41 - reach, reach, -1):
                near = divmod(int(next(others)), 41)
                kept = pixels[row, column].copy()
                pixels[row, column] = pixels[near]
                if mode == "clean":
                    pixels[near] = kept
    expected = cut_off(ndimage.gaussian_filter(pixels / 255, (sigma, sigma, 0), mode="nearest", truncate=4.0))
    result = GlassBlur(severity=severity, mode=mode).corrupt(picture, rng=generator(1, severity))  # type: ignore[arg-type]
    assert far(result, expected)[0] <= 1


def _zoomed(field: np.ndarray, factor: float) -> np.ndarray:
    """The published clipped zoom: cut the middle, enlarge, trim evenly."""
    height, width = field.shape
    inner = [int(np.ceil(side / factor)) for side in field.shape]
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    wide = ndimage.zoom(field[top : top + inner[0], left : left + inner[1]], factor, order=1)
    top, left = (wide.shape[0] - height) // 2, (wide.shape[1] - width) // 2
    return wide[top : top + height, left : left + width]


def _streaks(field: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """The sum of copies shifted along a line, with repeated borders."""
    bell = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    total = np.zeros(field.shape)
    for i, weight in enumerate(bell / bell.sum()):
        dy = -int(np.ceil(i * np.sin(np.deg2rad(angle)) - 0.5))
        dx = -int(np.ceil(i * np.cos(np.deg2rad(angle)) - 0.5))
        rows = np.clip(np.arange(field.shape[0]) - dy, 0, field.shape[0] - 1)
        columns = np.clip(np.arange(field.shape[1]) - dx, 0, field.shape[1] - 1)
        total += weight * field[rows][:, columns]
    return total


@pytest.mark.parametrize("size", [(64, 64), (70, 51)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_snow_is_streaks_over_a_whitened_scene(severity: int, size: tuple[int, int]) -> None:
    mean, deviation, zoom, threshold, radius, sigma, left = SNOW[severity - 1]
    picture = photograph(*size)
    rng = generator(2, severity)
    field = _zoomed(rng.standard_normal(size, dtype=np.float32) * deviation + mean, zoom)
    field[field < threshold] = 0
    flakes = (np.clip(field, 0, 1) * 255).astype(np.uint8) / 255
    flakes = np.round(_streaks(flakes, radius, sigma, rng.uniform(-135, -45)) * 255) / 255
    scene = picture / 255
    grey = (scene * (0.299, 0.587, 0.114)).sum(-1, keepdims=True)
    scene = left * scene + (1 - left) * np.maximum(scene, grey * 1.5 + 0.5)
    expected = cut_off(scene + flakes[..., None] + np.rot90(flakes, 2)[..., None])
    result = Snow(severity=severity).corrupt(picture, rng=generator(2, severity))
    assert far(result, expected)[1] < 0.002  # a flake at its threshold may fall on either side


def _diamond_square(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """One point after another, on a torus, with the draws of a round in rows."""
    heights, step, wide = np.zeros((side, side)), side, 100.0
    while step >= 2:
        half, count = step // 2, side // step
        for first, second in [(half, half), (0, half), (half, 0)]:
            change = (rng.random((count, count), dtype=np.float32).astype(float) * 2 - 1) * wide * wide
            fresh = heights.copy()
            for i in range(count):
                for j in range(count):
                    y, x = i * step + first, j * step + second
                    reach = [(-half, -half), (-half, half), (half, -half), (half, half)]
                    if (first, second) != (half, half):
                        reach = [(-half, 0), (half, 0), (0, -half), (0, half)]
                    around = [heights[(y + dy) % side, (x + dx) % side] for dy, dx in reach]
                    fresh[y, x] = sum(around) / 4 + change[i, j]
            heights = fresh
        step, wide = half, wide / decay
    heights -= heights.min()
    return heights / heights.max()


@pytest.mark.parametrize("decay", [1.4, 2.0])
def test_plasma_is_the_diamond_square_algorithm(decay: float) -> None:
    found = plasma(32, decay, rng=generator(3))
    assert np.abs(found - _diamond_square(32, decay, generator(3))).max() < 1e-5


@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_adds_plasma_and_keeps_the_maximum(severity: int) -> None:
    amount, decay = FOG[severity - 1]
    picture = photograph(60, 41)
    scene = picture / 255
    veil = _diamond_square(64, decay, generator(4, severity))[:60, :41, None]
    expected = cut_off((scene + amount * veil) * scene.max() / (scene.max() + amount))
    assert far(Fog(severity=severity).corrupt(picture, rng=generator(4, severity)), expected)[0] <= 1


def _displaced(scene: np.ndarray, field: np.ndarray, sigma: object, alpha: float) -> np.ndarray:
    dx, dy = (ndimage.gaussian_filter(part, sigma, mode="reflect", truncate=3.0) * alpha for part in field)
    y, x = np.mgrid[: scene.shape[0], : scene.shape[1]]
    planes = [
        ndimage.map_coordinates(scene[..., c], [y + dy, x + dx], order=1, mode="reflect") for c in range(scene.shape[2])
    ]
    return cut_off(np.stack(planes, -1))


@pytest.mark.parametrize("size", [(64, 64), (70, 51)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_elastic_transform_is_an_affine_map_and_a_displacement(severity: int, size: tuple[int, int]) -> None:
    alpha, sigma, jitter = (part * 244 * min(size) / 224 for part in ELASTIC[severity - 1])
    picture = photograph(*size)
    rng = generator(5, severity)
    third = min(size) // 3
    points = np.array([[third, third], [third, -third], [-third, -third]]) + np.array(size) // 2
    moved = points + rng.uniform(-jitter, jitter, (3, 2))
    matrix = np.linalg.solve(np.c_[points, np.ones(3)], moved).T  # maps (x, y, 1) of the source
    inverse = np.linalg.inv(np.r_[matrix, [[0, 0, 1]]])
    y, x = np.mgrid[: size[0], : size[1]]
    source = np.tensordot(inverse, np.stack([x, y, np.ones_like(x)]), 1)
    scene = np.stack(
        [
            ndimage.map_coordinates(picture[..., c] / 255, [source[1], source[0]], order=1, mode="mirror")
            for c in range(3)
        ],
        -1,
    )
    field = rng.random((2, *size), dtype=np.float32).astype(float) * 2 - 1
    expected = _displaced(scene, field, sigma, alpha)
    result = ElasticTransform(severity=severity).corrupt(picture, rng=generator(5, severity))
    off = np.abs(result.astype(int) - expected)
    assert np.quantile(off, 0.999) <= 1  # fractions cut off
    assert off.mean() < 0.05


@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_other_elastic_transform_is_imagecorruptions(severity: int) -> None:
    height, width = 90, 60
    alpha = 250 * [0.05, 0.065, 0.085, 0.1, 0.12][severity - 1]
    picture = photograph(height, width)
    draws = generator(6, severity).random((2, height, width), dtype=np.float32).astype(float) * 2 - 1
    expected = _displaced(picture / 255, draws * 0.005 * height, (0.01 * height, 0.01 * width), alpha)
    method = ElasticTransform(severity=severity, variant="imagecorruptions")
    off = np.abs(method.corrupt(picture, rng=generator(6, severity)).astype(int) - expected)
    assert np.quantile(off, 0.999) <= 1
    assert off.mean() < 0.05
    with pytest.raises(BadInput, match="did you mean 'imagenet-c'"):
        ElasticTransform(severity=severity, variant="imagenet_c")  # type: ignore[arg-type]


def test_smoothing_may_differ_by_axis() -> None:
    field = generator(7).standard_normal((40, 50), dtype=np.float32)
    for sigmas in [(0.8, 2.3), (15.0, 3.0)]:
        expected = ndimage.gaussian_filter(field.astype(float), sigmas, mode="reflect", truncate=3.0)
        assert np.abs(smoothed(field, sigmas, truncate=3.0, reflect=True) - expected).max() < 1e-5


@pytest.mark.parametrize("severity", SEVERITIES)
def test_spatter_is_water_or_mud(severity: int) -> None:
    mean, deviation, sigma, threshold, strength = SPATTER[severity - 1]
    picture = photograph(96, 80)
    field = generator(8, severity).standard_normal((96, 80), dtype=np.float32).astype(float) * deviation + mean
    liquid = ndimage.gaussian_filter(field, sigma, mode="nearest", truncate=4.0)
    liquid[liquid < threshold] = 0
    if severity < 4:
        levels = (liquid * 255).astype(np.uint8)
        edges = cv2.Canny(levels, 50, 150) > 0
        depth = np.minimum(ndimage.distance_transform_edt(~edges), 20)
        depth = ndimage.uniform_filter(depth, 3, mode="mirror").astype(np.uint8)
        relief = ndimage.correlate(
            cv2.equalizeHist(depth).astype(float), np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror"
        ).clip(0, 255)
        shine = np.rint(ndimage.uniform_filter(relief, 3, mode="mirror")) * levels
        layer = shine / shine.max() * strength
        expected = cut_off(picture / 255 + layer[..., None] * np.array([175, 238, 238]) / 255)
    else:
        mask = ndimage.gaussian_filter((liquid > threshold).astype(float), strength, mode="nearest", truncate=4.0)
        mask[mask < 0.8] = 0
        expected = cut_off(picture / 255 * (1 - mask[..., None]) + mask[..., None] * np.array([63, 42, 20]) / 255)
    result = Spatter(severity=severity).corrupt(picture, rng=generator(8, severity))
    off = np.abs(result.astype(int) - expected)
    # OpenCV's distances are approximate, and a histogram with few entries spreads a step in them over many levels.
    assert np.quantile(off, 0.95) <= (8 if severity < 4 else 1)
    assert np.corrcoef(result.ravel(), expected.ravel())[0, 1] > 0.98
    assert not np.array_equal(result, picture)


@pytest.mark.parametrize("method", [Contrast(severity=2), GaussianNoise(severity=3)])
def test_as_stored_is_a_jpeg_of_quality_85(method: Contrast | GaussianNoise) -> None:
    picture = photograph(64, 48)
    kept = picture.copy()
    result = AsStored(corruption=method).corrupt(picture, rng=generator(9))
    plain = method.corrupt(picture, rng=generator(9))
    written = BytesIO()
    Image.fromarray(plain).save(written, "JPEG", quality=85, optimize=True)  # the published generator's line
    assert np.array_equal(result, np.array(Image.open(written)))
    assert not np.array_equal(result, plain)
    assert np.array_equal(picture, kept)
    assert len({str(options(AsStored(corruption=other))) for other in (Contrast(severity=2), Fog(severity=2))}) == 2
    with pytest.raises(BadInput, match="uint8 RGB"):
        AsStored(corruption=method).corrupt(np.zeros((3, 32, 32), np.uint8), rng=generator(0))
