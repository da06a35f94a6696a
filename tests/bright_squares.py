"""Pictures with one bright square each, and a detector and a segmenter that see it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from seatrial.core.predictor import Gift, Inputs, Predictor


def bright_square(pictures: list[Tensor]) -> list[dict[str, Tensor]]:
    """Find the one square that is brighter than all around it, with its mask."""
    found = []
    for picture in pictures:
        inside = picture.mean(0) > 0.55
        y, x = torch.nonzero(inside, as_tuple=True)
        count = int(len(y) > 0)
        box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])[None].float() if count else torch.empty(0, 4)
        scores, labels = torch.full((count,), 0.9), torch.zeros(count, dtype=torch.int64)
        masks = inside[None, None].float().expand(count, 1, *inside.shape)
        found.append({"boxes": box, "scores": scores, "labels": labels, "masks": masks})
    return found


class Segmenter(Predictor):
    """Bright pixels are of class 1."""

    gives: frozenset[Gift] = frozenset()

    def __call__(self, inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)
        bright = (inputs.mean(1, keepdim=True) > 0.55).float()
        return torch.cat([1 - bright, bright], dim=1)


def square_folder(root: Path) -> Path:
    """Write three dark pictures of different sizes, each with a bright square, an outline and a map of it."""
    for number, (height, width) in enumerate([(64, 96), (90, 60), (40, 120)]):
        pixels = np.full((height, width, 3), 40, dtype=np.uint8)
        pixels[8 : 8 + 24, 12 : 12 + 30] = 230
        corners = [(12, 8), (42, 8), (42, 32), (12, 32)]
        for name in ("images", "masks", "labels"):
            (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / f"images/p{number}.png")
        Image.fromarray((pixels[:, :, 0] > 100).astype(np.uint8)).save(root / f"masks/p{number}.png")
        shares = " ".join(f"{x / width} {y / height}" for x, y in corners)
        (root / f"labels/p{number}.txt").write_text(f"0 {shares}\n")
    return root
