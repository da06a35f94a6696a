"""The other corruptions of ImageNet-C against their plain definitions, written here without the methods' shortcuts."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage, stats

from seatrial import catalogue
from seatrial.core.chance import generator
from seatrial.core.noise import Corruption
from seatrial.errors import BadInput
from seatrial.noise.clipped_zoom import clipped_zoom
from seatrial.noise.frost import Frost
from seatrial.noise.frost_pictures import frost_picture
from seatrial.noise.glass_blur import GlassBlur, _copied, _exchanged, _meetings
from seatrial.noise.plasma import plasma
from seatrial.noise.poisson import poisson_levels
from seatrial.noise.smoothing import smoothed

SEVERITIES = [1, 2, 3, 4, 5]


def pattern(height: int, width: int) -> np.ndarray:
    """A picture with edges, ramps, black, white and every relation of the channels, made by a formula."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([(x * 7 + y * 3) % 256, (x * y) % 256, (255 - x * 2 + y * 5) % 256], -1).astype(np.uint8)
    picture[:4, :4], picture[-4:, -4:] = 0, 255
    return picture


def made(name: str, severity: int, **options: object) -> Corruption:
    return catalogue.make("corruption", name, severity=severity, **options)


def near(result: np.ndarray, expected: np.ndarray, levels: int = 1) -> bool:
    """Whether two pictures differ by at most `levels`: fractions may be cut off on either side of a whole number."""
    return int(np.abs(result.astype(int) - expected.astype(int)).max()) <= levels


@pytest.mark.parametrize("photons", [60, 25, 12, 5, 3])
def test_shot_noise_draws_from_the_poisson_distribution(photons: int) -> None:
    for level in (0, 7, 128, 255):
        drawn = poisson_levels(np.full((300, 200, 3), level, np.uint8), photons, rng=generator(1, photons, level))
        mean = level / 255 * photons
        counts = np.bincount(drawn.ravel(), minlength=photons * 3)
        expected = stats.poisson.pmf(np.arange(len(counts)), mean) * drawn.size
        usual = expected > 10
        assert usual.any()
        if usual.sum() > 1:
            seen, wanted = counts[usual], expected[usual]
            assert stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 1e-3
        else:
            assert counts[0] == drawn.size


@pytest.mark.parametrize(("severity", "share"), list(zip(SEVERITIES, [0.03, 0.06, 0.09, 0.17, 0.27], strict=True)))
def test_impulse_noise_replaces_its_share_by_black_and_white(severity: int, share: float) -> None:
    grey = np.full((200, 200, 3), 127, np.uint8)
    result = made("impulse_noise", severity).corrupt(grey, rng=generator(2, severity))
    assert set(np.unique(result)) == {0, 127, 255}
    for level in (0, 255):
        found = int((result == level).sum())
        assert stats.binomtest(found, result.size, share / 2).pvalue > 1e-3


@pytest.mark.parametrize(("severity", "deviation"), list(zip(SEVERITIES, [0.15, 0.2, 0.35, 0.45, 0.6], strict=True)))
def test_speckle_noise_grows_with_the_value(severity: int, deviation: float) -> None:
    for level in (100, 110):
        result = made("speckle_noise", severity).corrupt(
            np.full((200, 200, 3), level, np.uint8), rng=generator(3, severity)
        )
        relative = np.sort((result.ravel() + 0.5) / level - 1) / deviation
        # Quantiles that no clipping reaches; fractions are cut off, hence the half level above.
        for probability in (0.25, 0.5, 0.75, 0.9):
            assert abs(np.quantile(relative, probability) - stats.norm.ppf(probability)) < 0.08


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_blur_is_a_convolution_with_a_soft_disk(severity: int) -> None:
    radius, sigma = [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)][severity - 1]
    reach, rim = (8, 3) if radius <= 8 else (radius, 5)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = ((x**2 + y**2) <= radius**2).astype(np.float64)
    disk = cv2.GaussianBlur(disk / disk.sum(), (rim, rim), sigma)
    picture = pattern(60, 47)
    planes = [ndimage.correlate(picture[..., c] / 255, disk, mode="mirror") for c in range(3)]
    expected = (np.clip(np.stack(planes, -1), 0, 1) * 255).astype(np.uint8)
    assert near(made("defocus_blur", severity).corrupt(picture, rng=generator(0)), expected)


@pytest.mark.parametrize(("severity", "sigma"), list(zip(SEVERITIES, [1, 2, 3, 4, 6], strict=True)))
def test_gaussian_blur_is_scipys(severity: int, sigma: int) -> None:
    picture = pattern(60, 47)
    blurred = ndimage.gaussian_filter(picture / 255, (sigma, sigma, 0), mode="nearest", truncate=4.0)
    expected = (np.clip(blurred, 0, 1) * 255).astype(np.uint8)
    assert near(made("gaussian_blur", severity).corrupt(picture, rng=generator(0)), expected)


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("sigma", [0.7, 2.4, 40.0, 170.0])
def test_smoothing_is_scipys_at_every_width(sigma: float, reflect: bool) -> None:
    field = generator(4).standard_normal((70, 53), dtype=np.float32)
    mode = "reflect" if reflect else "nearest"
    expected = ndimage.gaussian_filter(field.astype(np.float64), sigma, mode=mode, truncate=3.0)
    assert np.abs(smoothed(field, sigma, truncate=3.0, reflect=reflect) - expected).max() < 1e-5


@pytest.mark.parametrize("size", [(224, 224), (61, 47), (32, 50)])
@pytest.mark.parametrize("factor", [1.01, 1.1, 1.3, 2.0, 4.5])
def test_a_clipped_zoom_is_scipys(factor: float, size: tuple[int, int]) -> None:
    field = pattern(*size).astype(np.float32)
    middle = [int(np.ceil(side / factor)) for side in size]
    starts = [(side - part) // 2 for side, part in zip(size, middle)]
    part = field[starts[0] : starts[0] + middle[0], starts[1] : starts[1] + middle[1]]
    wide = ndimage.zoom(part, (factor, factor, 1), order=1)
    offsets = [(length - side) // 2 for length, side in zip(wide.shape, size)]
    expected = wide[offsets[0] : offsets[0] + size[0], offsets[1] : offsets[1] + size[1]]
    assert np.abs(clipped_zoom(field, factor) - expected).max() < 0.1


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_moves_towards_the_mean(severity: int) -> None:
    picture = pattern(41, 60)
    scale, factor = picture / 255, [0.4, 0.3, 0.2, 0.1, 0.05][severity - 1]
    mean = scale.mean((0, 1), keepdims=True)
    expected = (np.clip((scale - mean) * factor + mean, 0, 1) * 255).astype(np.uint8)
    assert near(made("contrast", severity).corrupt(picture, rng=generator(0)), expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_pillows_box_both_ways(severity: int) -> None:
    picture = pattern(61, 47)
    scale = [0.6, 0.5, 0.4, 0.3, 0.25][severity - 1]
    small = Image.fromarray(picture).resize((int(47 * scale), int(61 * scale)), Image.Resampling.BOX)
    expected = np.asarray(small.resize((47, 61), Image.Resampling.BOX))
    assert np.array_equal(made("pixelate", severity).corrupt(picture, rng=generator(0)), expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_saturate_is_the_way_through_hsv(severity: int) -> None:
    factor, offset = [(0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)][severity - 1]
    picture = pattern(33, 35)
    picture[10:14, 10:14] = 90  # grey has the hue of red
    expected = np.empty_like(picture)
    for place in np.ndindex(33, 35):
        hue, saturation, value = colorsys.rgb_to_hsv(*(picture[place] / 255))
        new = colorsys.hsv_to_rgb(hue, min(1.0, max(0.0, saturation * factor + offset)), value)
        expected[place] = (np.array(new) * 255 + 1e-6).astype(np.uint8)
    assert near(made("saturate", severity).corrupt(picture, rng=generator(0)), expected)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(32, 45), width=st.integers(32, 45), reach=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_a_pass_of_glass_blur_is_the_sequential_scan(height: int, width: int, reach: int, seed: int) -> None:
    scanned, met = _meetings(height, width, reach, generator(seed))
    origin = generator(seed, "origin").permutation(height * width).astype(np.int32)
    copied, exchanged = origin.copy(), origin.copy()
    for one, other in zip(scanned, met):
        copied[one] = copied[other]
        exchanged[one], exchanged[other] = exchanged[other], exchanged[one]
    assert np.array_equal(_copied(origin, scanned, met), copied)
    assert np.array_equal(_exchanged(origin, scanned, met), exchanged)
    assert sorted(exchanged) == sorted(origin)
    rows, columns = np.divmod(scanned, width)
    assert (np.diff(scanned) < 0).all()
    assert rows.min() == columns.min() == reach + 1
    down, right = met // width - rows, met % width - columns
    assert max(np.abs(down).max(), np.abs(right).max()) <= reach
    assert max(down.max(), right.max()) == reach - 1


@pytest.mark.parametrize(("height", "width"), [(270, 290), (6, 6), (1, 9)])
def test_a_pass_of_glass_blur_on_large_and_tiny_pictures(height: int, width: int) -> None:
    scanned, met = _meetings(height, width, 4, generator(6))
    origin = np.arange(height * width, dtype=np.int32)
    copied, exchanged = origin.copy(), origin.copy()
    for one, other in zip(scanned, met):
        copied[one] = copied[other]
        exchanged[one], exchanged[other] = exchanged[other], exchanged[one]
    assert np.array_equal(_copied(origin, scanned, met), copied)
    assert np.array_equal(_exchanged(origin, scanned, met), exchanged)


def test_glass_blur_has_two_modes() -> None:
    picture = pattern(64, 64)
    reference = GlassBlur(severity=3).corrupt(picture, rng=generator(5))
    clean = GlassBlur(severity=3, mode="clean").corrupt(picture, rng=generator(5))
    assert not np.array_equal(reference, clean)
    with pytest.raises(BadInput, match="mode"):
        GlassBlur(severity=3, mode="swap")  # type: ignore[arg-type]


def test_plasma_is_between_0_and_1_and_rougher_for_a_smaller_decay() -> None:
    rough, smooth = (plasma(128, decay, rng=generator(6)) for decay in (1.4, 3.0))
    for field in (rough, smooth):
        assert field.shape == (128, 128)
        assert field.min() == 0
        assert field.max() == 1
    assert np.abs(np.diff(rough, axis=0)).mean() > 2 * np.abs(np.diff(smooth, axis=0)).mean()
    # On a torus the step over the seam is like any other.
    seam = np.abs(smooth[0] - smooth[-1]).mean()
    assert seam < 3 * np.abs(np.diff(smooth, axis=0)).mean()


def test_frost_says_where_its_pictures_come_from() -> None:
    procedural = Frost(severity=3, source="procedural")
    picture = pattern(48, 60)
    result = procedural.corrupt(picture, rng=generator(7))
    rng = generator(7)
    frost = frost_picture("procedural", int(rng.integers(5)), 48, 60, 1.1)
    top, left = int(rng.integers(frost.shape[0] - 48)), int(rng.integers(frost.shape[1] - 60))
    expected = np.clip(0.7 * picture + 0.7 * frost[top : top + 48, left : left + 60].astype(float), 0, 255)
    assert near(result, expected.astype(np.uint8))
    assert Frost(severity=1).source.startswith(("procedural", "imagecorruptions"))
    with pytest.raises(BadInput, match="frost pictures 'photographs'"):
        Frost(severity=1, source="photographs")


def test_large_pictures_get_enlarged_frost() -> None:
    frost = frost_picture("procedural", 5, 700, 900, 1.1)
    assert frost.shape[0] > 700
    assert frost.shape[1] > 900


@pytest.mark.parametrize("name", list(catalogue.entries("corruption")))
def test_stronger_is_further_for_most(name: str) -> None:
    """Severity 5 moves a smooth picture further than severity 1 does (between them it is not always monotonic)."""
    y, x = np.mgrid[:96, :96] / 96
    waves = [np.sin(2 * np.pi * (2 * x * (c + 1) + 3 * y)) for c in range(3)]
    picture = (127 + 100 * np.stack(waves, -1)).astype(np.uint8)
    moved = [
        np.abs(made(name, severity).corrupt(picture, rng=generator(8, name)).astype(int) - picture).mean()
        for severity in (1, 5)
    ]
    if name in ("elastic_transform", "saturate"):  # their first two severities are of another kind than the last three
        assert min(moved) > 0
    else:
        assert moved[1] > moved[0]
