"""Resizes of PyTorch: torchvision is the oracle; an area mean tells antialiasing from none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.data.resize import INTERPOLATIONS, resize

TORCH = INTERPOLATIONS["torch"]


def _picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("interpolation", TORCH)
@settings(max_examples=30, deadline=None)
@given(
    source_px=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    size_px=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    contiguous=st.booleans(),
)
def test_torch_equals_torchvision(
    interpolation: str, source_px: tuple[int, int], size_px: tuple[int, int], contiguous: bool
) -> None:
    functional = pytest.importorskip(
        "torchvision.transforms.v2.functional", reason="the oracle is torchvision (extra: vision)"
    )
    modes = pytest.importorskip("torchvision.transforms").InterpolationMode
    pixels = _picture(*source_px)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    # To a single pixel PyTorch 2.12.1 ends contiguous planes with an internal assertion; the others it resizes.
    wanted = functional.resize(
        planes.contiguous() if contiguous and size_px != (1, 1) else planes,
        list(size_px),
        modes(interpolation.removesuffix("-antialias")),
        antialias=interpolation.endswith("-antialias"),
    )
    found = resize(pixels, size_px, "torch", interpolation)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    difference = np.abs(found.astype(int) - wanted.permute(1, 2, 0).numpy()).max()
    # Without AVX2 torchvision resizes bilinearly in float32, which may round the other way.
    narrow = torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512")
    assert difference <= (2 if narrow and interpolation.startswith("bilinear") else 0)


def test_antialiasing_looks_at_every_pixel_and_plain_filters_do_not() -> None:
    pixels = _picture(64, 64)
    means = pixels.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3))
    error = {name: np.abs(resize(pixels, (8, 8), "torch", name) - means).mean() for name in TORCH}
    for name in ("bilinear", "bicubic"):
        assert 3 * error[f"{name}-antialias"] < error[name]
    np.testing.assert_array_equal(resize(pixels, (8, 8), "torch", "nearest"), pixels[::8, ::8])


def test_antialiased_torch_is_pillow_but_for_rounding() -> None:
    pixels = _picture(64, 48)
    for name in ("bilinear", "bicubic"):
        found, pillow = (
            resize(pixels, (24, 20), "torch", f"{name}-antialias").astype(int),
            resize(pixels, (24, 20), "pillow", name).astype(int),
        )
        assert np.abs(found - pillow).max() <= 2


@pytest.mark.parametrize("interpolation", TORCH)
def test_pixels_that_may_not_be_written_are_resized_without_a_warning(
    interpolation: str, recwarn: pytest.WarningsRecorder
) -> None:
    pixels = _picture(9, 11)
    pixels.setflags(write=False)
    writeable = resize(_picture(9, 11), (5, 7), "torch", interpolation)
    np.testing.assert_array_equal(resize(pixels, (5, 7), "torch", interpolation), writeable)
    assert not list(recwarn)
