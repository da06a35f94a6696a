"""Square attack in L-inf: squares of one sign a channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from seatrial.noise.ball import LinfBall
from seatrial.noise.random_search import RandomSearch, areas


@final
class LinfSearch(RandomSearch):
    """Vertical stripes, then squares that push all their pixels to one wall of the ball a channel (algorithm 2)."""

    def __init__(
        self, ball: LinfBall, labels: Tensor, rng: Sequence[np.random.Generator], proposals: int, share: float
    ) -> None:
        count, channels, height, width = ball.lower.shape
        self._bits = 2 ** torch.arange(channels, device=labels.device)
        sides = np.rint(np.sqrt(areas(share, height * width, proposals))).astype(np.int64)
        self._sides = np.clip(sides, 1, min(height, width))
        stripes = np.empty((count, channels, width), dtype=np.int64)
        draws = np.empty((count, proposals, 3), dtype=np.int32)
        for i, generator in enumerate(rng):
            stripes[i] = generator.integers(0, 2, (channels, width))
            top = generator.integers(0, height - self._sides + 1)
            draws[i, :, 0] = top * width + generator.integers(0, width - self._sides + 1)
            draws[i, :, 1] = generator.integers(0, 2**channels, proposals)
            draws[i, :, 2] = generator.integers(1, 2**channels, proposals)
        up = torch.from_numpy(stripes).to(labels.device).bool()[:, :, None, :]
        super().__init__(torch.where(up, ball.upper, ball.lower), labels, proposals)
        self.arrays |= {
            "lower": ball.lower,
            "upper": ball.upper,
            "draws": torch.from_numpy(draws).to(labels.device),
        }
        self._changed = self._before = torch.empty(0, device=labels.device)

    def propose(self, step: int) -> None:
        """Write one square into every sample."""
        best = self.arrays["best"].flatten(2)
        channels, width, side = best.shape[1], self.arrays["best"].shape[3], int(self._sides[step])
        corner, code, other = self.arrays["draws"][:, step].long().unbind(1)
        reach = torch.arange(side, device=corner.device)
        square = (reach[:, None] * width + reach).flatten()
        pixels = (corner[:, None] + square)[:, None].expand(-1, channels, -1)
        low, high = (self.arrays[wall].flatten(2).gather(2, pixels) for wall in ("lower", "upper"))
        before = best.gather(2, pixels)
        square_now = torch.where(self._raised(code), high, low)
        idle = (square_now == before).flatten(1).all(1)
        code = torch.where(idle, (code + other) % 2**channels, code)
        best.scatter_(2, pixels, torch.where(self._raised(code), high, low))
        self._changed, self._before = pixels, before

    def take_back(self, rejected: Tensor) -> None:
        """Put back what stood in the square of these rows."""
        best = self.arrays["best"]
        channels, pixels = best.shape[1], best.shape[2] * best.shape[3]
        planes = rejected[:, None] * channels + torch.arange(channels, device=rejected.device)
        best.view(-1)[planes[:, :, None] * pixels + self._changed[rejected]] = self._before[rejected]

    def _raised(self, code: Tensor) -> Tensor:
        return (code[:, None] & self._bits != 0)[:, :, None]
