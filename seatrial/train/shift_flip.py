"""The plain augmentation of small pictures: shifts and mirror images, drawn for each picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from seatrial.errors import BadInput


@final
@dataclass(frozen=True, kw_only=True)
class ShiftFlip:
    """Shift by up to `share` of the height and width, with black behind, and mirror half of the pictures.

    Source: He et al. 2016, section 4.2 (4 of 32 pixels). Departures: `flip` may be off, for digits and text.
    Raises BadInput for a share that is not from 0 to below 1.
    """

    share: float = 0.125
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise BadInput(f"a shift by {self.share}", "a share from 0 to below 1", "give for example 0.125")

    def __call__(
        self, pictures: UInt8[Tensor, "batch 3 height width"], rng: np.random.Generator
    ) -> Float[Tensor, "batch 3 height width"]:
        """Return the pictures in [0, 1], each moved by a draw of its own; float pictures are taken as they are."""
        count, _, height, width = pictures.shape
        reach = [round(self.share * side) for side in (height, width)]
        moved = [
            torch.from_numpy(rng.integers(-most, most + 1, count))[:, None] + torch.arange(side)
            for most, side in zip(reach, (height, width), strict=True)
        ]
        if self.flip:
            mirrored = torch.from_numpy(rng.integers(0, 2, count)).bool()
            moved[1] = torch.where(mirrored[:, None], moved[1].flip(1), moved[1])
        inside = [(index >= 0) & (index < side) for index, side in zip(moved, (height, width), strict=True)]
        rows, columns = (index.clamp(0, side - 1) for index, side in zip(moved, (height, width), strict=True))
        # Channels last, so that one index takes whole pixels.
        found = pictures.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
        found = found * (inside[0][:, :, None] & inside[1][:, None, :])[..., None]
        return unit(found.permute(0, 3, 1, 2).contiguous())


def unit(pictures: Tensor) -> Float[Tensor, "..."]:
    """Return uint8 pictures as float32 in [0, 1]; float pictures come back as they are."""
    return pictures.to(torch.float32).div_(255) if pictures.dtype == torch.uint8 else pictures
