"""The nine operations of AugMix on whole batches of pictures with levels 0 to 255, each picture at its own strength."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Pictures = Float[Tensor, "batch 3 height width"]
Strengths = Float[Tensor, " batch"]


def autocontrast(pictures: Pictures, strength: Strengths, sign: Strengths) -> Pictures:
    """Stretch each channel so that its lowest level is 0 and its highest 255; a flat channel stays."""
    low, high = pictures.amin((2, 3), keepdim=True), pictures.amax((2, 3), keepdim=True)
    # In float64, as in a table of Python numbers: a product just below a whole number is cut off, not rounded.
    scale = 255 / (high - low).double().clamp(min=1)
    stretched = (pictures * scale - low * scale).clamp(0, 255).trunc().to(pictures.dtype)
    return torch.where(high > low, stretched, pictures)


def equalize(pictures: Pictures, strength: Strengths, sign: Strengths) -> Pictures:
    """Spread the levels of each channel so that their histogram becomes flat."""
    flat = pictures.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.long).scatter_add_(2, flat, torch.ones_like(flat))
    highest = flat.amax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, highest)) // 255
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256).expand_as(table))
    return table.gather(2, flat).reshape(pictures.shape).to(pictures.dtype)


def posterize(pictures: Pictures, strength: Strengths, sign: Strengths) -> Pictures:
    """Keep the highest 4 bits of each level, less as many as 0.4 times the strength."""
    dropped = 4 + (strength * 4 / 10).trunc()
    step = (2.0**dropped).reshape(-1, 1, 1, 1)
    return (pictures / step).floor() * step


def solarize(pictures: Pictures, strength: Strengths, sign: Strengths) -> Pictures:
    """Invert levels from 256, less 25.6 times the strength, upwards."""
    threshold = (256 - (strength * 256 / 10).trunc()).reshape(-1, 1, 1, 1)
    return torch.where(pictures < threshold, pictures, 255 - pictures)


def rotate(pictures: Pictures, strength: Strengths, sign: Strengths) -> Pictures:
    """Rotate around the center by whole degrees, 3 for each unit of strength, left or right."""
    angle = -(strength * 30 / 10).trunc().double() * sign * math.pi / 180
    cosine, sine = angle.cos(), angle.sin()
    x, y = pictures.shape[3] / 2, pictures.shape[2] / 2
    across = torch.stack([cosine, sine, x - cosine * x - sine * y], 1)
    down = torch.stack([-sine, cosine, y + sine * x - cosine * y], 1)
    return _sampled(pictures, across, down)


def shear_x(pictures: Pictures, strength: Strengths, sign: Strengths) -> Pictures:
    """Shift each row by 0.03 of its height in the picture for each unit of strength, left or right."""
    return _affine(pictures, 0, 1, strength * 0.3 / 10 * sign)


def shear_y(pictures: Pictures, strength: Strengths, sign: Strengths) -> Pictures:
    """Shift each column by 0.03 of its place in the picture for each unit of strength, up or down."""
    return _affine(pictures, 1, 0, strength * 0.3 / 10 * sign)


def translate_x(pictures: Pictures, strength: Strengths, sign: Strengths) -> Pictures:
    """Move by whole pixels, a thirtieth of the width for each unit of strength, left or right."""
    return _affine(pictures, 0, 2, (strength * (pictures.shape[3] / 3) / 10).trunc() * sign)


def translate_y(pictures: Pictures, strength: Strengths, sign: Strengths) -> Pictures:
    """Move by whole pixels, a thirtieth of the height for each unit of strength, up or down."""
    return _affine(pictures, 1, 2, (strength * (pictures.shape[2] / 3) / 10).trunc() * sign)


OPERATIONS: tuple[Callable[[Pictures, Strengths, Strengths], Pictures], ...] = (
    autocontrast, equalize, posterize, rotate, solarize, shear_x, shear_y, translate_x, translate_y,
)  # fmt: skip
"""In the paper's order; those that ImageNet-C tests on are left out there too. Strengths go from 0 to 10."""


def _affine(pictures: Pictures, row: int, column: int, value: Tensor) -> Pictures:
    """Sample with the identity map, but for one entry of it."""
    maps = torch.zeros(2, len(pictures), 3, dtype=torch.float64)
    maps[0, :, 0] = maps[1, :, 1] = 1
    maps[row, :, column] = value.double()
    return _sampled(pictures, maps[0], maps[1])


def _sampled(pictures: Pictures, across: Float[Tensor, "batch 3"], down: Float[Tensor, "batch 3"]) -> Pictures:
    """Read each pixel, bilinearly, where the maps from its center say; black where that lies outside."""
    height, width = pictures.shape[2:]
    x = (torch.arange(width, dtype=torch.float64) + 0.5).reshape(1, 1, -1)
    y = (torch.arange(height, dtype=torch.float64) + 0.5).reshape(1, -1, 1)
    at = [part[:, 0, None, None] * x + part[:, 1, None, None] * y + part[:, 2, None, None] for part in (across, down)]
    inside = (at[0] >= 0) & (at[0] < width) & (at[1] >= 0) & (at[1] < height)
    grid = torch.stack([2 * at[0] / width - 1, 2 * at[1] / height - 1], 3).to(pictures.dtype)
    found = F.grid_sample(pictures, grid, "bilinear", "border", align_corners=False)
    # Levels are cut off, as Pillow does; the margin is what float32 loses on a whole number.
    return ((found + 1e-3).floor() * inside[:, None]).clamp(0, 255)
