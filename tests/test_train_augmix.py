"""AugMix: its operations against Pillow's, its divergence against scipy's, its mixtures and their laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy.spatial.distance import jensenshannon
from torch import nn

from seatrial.core.chance import generator
from seatrial.errors import BadInput
from seatrial.train import augmix_operations as operations
from seatrial.train.augmix import AugMix, divergence
from seatrial.train.shift_flip import ShiftFlip

BILINEAR = Image.Resampling.BILINEAR
AFFINE = Image.Transform.AFFINE


def textured(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    """Return a picture with smooth parts, noise and a narrow range in one channel, uint8 RGB."""
    rng = generator(seed, "textured")
    ramp = np.linspace(20, 200, width)[None, :, None] + np.linspace(0, 50, height)[:, None, None]
    picture = np.clip(ramp + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)
    picture[..., 2] = picture[..., 2] // 4 + 90
    return picture


def pillow(name: str, picture: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """What the published code does with Pillow for a strength of 0 to 10."""
    image, (height, width) = Image.fromarray(picture), picture.shape[:2]
    if name == "autocontrast":
        found = ImageOps.autocontrast(image)
    elif name == "equalize":
        found = ImageOps.equalize(image)
    elif name == "posterize":
        found = ImageOps.posterize(image, 4 - int(strength * 4 / 10))
    elif name == "solarize":
        found = ImageOps.solarize(image, 256 - int(strength * 256 / 10))
    elif name == "rotate":
        found = image.rotate(int(strength * 30 / 10) * sign, resample=BILINEAR)
    else:
        shift = {"x": int(strength * (width / 3) / 10), "y": int(strength * (height / 3) / 10)}[name[-1]] * sign
        slope = strength * 0.3 / 10 * sign
        maps = {
            "shear_x": (1, slope, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, slope, 1, 0),
            "translate_x": (1, 0, shift, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, shift),
        }
        found = image.transform(image.size, AFFINE, maps[name], resample=BILINEAR)
    return np.asarray(found)


@pytest.mark.parametrize("operation", operations.OPERATIONS, ids=lambda operation: operation.__name__)
def test_an_operation_is_that_of_pillow(operation) -> None:
    name, strengths = operation.__name__, np.array([0.2, 1.0, 2.7, 6.5], dtype=np.float32)
    pictures = [textured(seed) for seed in range(4)]
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    for sign in (-1.0, 1.0):
        found = operation(stacked, torch.from_numpy(strengths), torch.full((4,), sign))
        found = found.permute(0, 2, 3, 1).numpy()
        assert np.array_equal(found, found.round())
        for one, picture, strength in zip(found, pictures, strengths, strict=True):
            wanted = pillow(name, picture, float(strength), sign)
            off = np.abs(one - wanted.astype(np.float32))
            if name in ("rotate", "shear_x", "shear_y"):
                # A sample within float32 of the border may fall on its other side.
                assert (off > 1).mean() < 0.005
                assert (off > 0).mean() < 0.05
            else:
                assert np.array_equal(one, wanted)


def test_a_flat_picture_stays_under_operations_on_levels() -> None:
    flat = torch.full((1, 3, 5, 5), 77.0)
    for operation in (operations.autocontrast, operations.equalize):
        assert torch.equal(operation(flat, torch.ones(1), torch.ones(1)), flat)


def test_the_divergence_is_that_of_scipy() -> None:
    logits = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = divergence(tuple(logits))
    chances = logits.softmax(2).numpy()
    middle = chances.mean(0)
    for row in range(7):
        wanted = np.mean([(part[row] * np.log(part[row] / middle[row])).sum() for part in chances])
        assert float(found[row]) == pytest.approx(wanted, rel=1e-9)
    pair = divergence((logits[0], logits[1]))
    assert float(pair[0]) == pytest.approx(jensenshannon(chances[0, 0], chances[1, 0]) ** 2, rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.floats(0.05, 10), st.integers(0, 5))
def test_mixtures_are_pictures(width: int, depth: int, severity: float, seed: int) -> None:
    method = AugMix(width=width, depth=depth, severity=severity)
    pictures = torch.from_numpy(np.stack([textured(i, 12, 9) for i in range(3)])).permute(0, 3, 1, 2).float() / 255
    kept = pictures.clone()
    found = method.mixed(pictures, generator(seed, "mix"))
    assert found.shape == pictures.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert torch.equal(pictures, kept)
    assert torch.equal(method.mixed(pictures, generator(seed, "mix")), found)


def test_the_loss_is_cross_entropy_and_twelve_divergences() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 9, 4))
    pictures = torch.from_numpy(np.stack([textured(i, 12, 9) for i in range(5)])).permute(0, 3, 1, 2)
    labels = torch.tensor([0, 1, 2, 3, 0])
    found = AugMix().loss(module, pictures, labels, rng=generator(1))
    clean = pictures.float() / 255
    twins = AugMix().mixed(clean.repeat(2, 1, 1, 1), generator(1))
    answers = (module(clean), *module(twins).chunk(2))
    wanted = nn.functional.cross_entropy(answers[0], labels) + 12 * divergence(answers).mean()
    assert torch.allclose(found, wanted, rtol=1e-6)
    plain = AugMix(agreement=0).loss(module, pictures, labels, rng=generator(1))
    once = module(AugMix().mixed(clean, generator(1)))
    assert torch.equal(plain, nn.functional.cross_entropy(once, labels))


def test_shifts_and_mirror_images() -> None:
    picture = torch.arange(3 * 4 * 6, dtype=torch.uint8).reshape(1, 3, 4, 6)
    many = picture.expand(200, -1, -1, -1)
    found = ShiftFlip(share=0.25)(many, generator(0)) * 255
    wanted = set()
    padded = nn.functional.pad(picture, (2, 2, 1, 1))
    for top in range(3):
        for left in range(5):
            moved = padded[0, :, top : top + 4, left : left + 6]
            wanted |= {tuple(moved.flatten().tolist()), tuple(moved.flip(2).flatten().tolist())}
    seen = {tuple(one.round().int().flatten().tolist()) for one in found}
    assert seen <= wanted
    assert len(seen) > 20
    still = ShiftFlip(share=0, flip=False)(many, generator(0))
    assert torch.equal(still, many.float() / 255)


@pytest.mark.parametrize("options", [{"width": 0}, {"depth": 0}, {"severity": 11}, {"agreement": -1.0}])
def test_options_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(BadInput):
        AugMix(**options)
    with pytest.raises(BadInput):
        ShiftFlip(share=1.0)
