"""The middle of a picture, enlarged to the picture's size."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float


def clipped_zoom(
    field: Float[np.ndarray, "height width *channels"], factor: float
) -> Float[np.ndarray, "height width *channels"]:
    """Return the middle of float32 `field`, one `factor`-th of its sides, enlarged linearly to the size of `field`.

    First and last pixels of the middle stay first and last, as in `scipy.ndimage.zoom` with order 1; what is too much
    is cut off evenly. Source: hendrycks/robustness, make_imagenet_c.py.
    """
    sides = field.shape[:2]
    middle = [math.ceil(side / factor) for side in sides]
    starts = [(side - part) // 2 for side, part in zip(sides, middle)]
    part = field[starts[0] : starts[0] + middle[0], starts[1] : starts[1] + middle[1]]
    size = [round(length * factor) for length in middle]
    planes = torch.from_numpy(np.ascontiguousarray(part.reshape(*middle, -1))).permute(2, 0, 1)[None]
    wide = F.interpolate(planes, size=size, mode="bilinear", align_corners=True)[0].permute(1, 2, 0).numpy()
    offsets = [(length - side) // 2 for length, side in zip(size, sides)]
    return wide[offsets[0] : offsets[0] + sides[0], offsets[1] : offsets[1] + sides[1]].reshape(field.shape)
