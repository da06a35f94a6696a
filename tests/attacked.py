"""What attacks are tried on: predictors that note what they are asked, small networks, pictures with walls."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from seatrial.core.chance import generator
from seatrial.core.predictor import Gift, Inputs, Predictor


class Judge(Predictor):
    """A module seen through its forward pass, which notes what it was asked."""

    def __init__(
        self, module: nn.Module, gives: frozenset[Gift] = frozenset({"gradients", "logits", "labels"})
    ) -> None:
        self._module, self._gives = module, gives
        self.asked: list[Tensor] = []

    @property
    def gives(self) -> frozenset[Gift]:
        return self._gives

    def __call__(self, inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)
        self.asked.append(inputs.detach().clone())
        if "gradients" in self._gives:
            return self._module(inputs)
        assert not inputs.requires_grad
        with torch.no_grad():
            return self._module(inputs).detach()

    @property
    def rows(self) -> int:
        return sum(len(batch) for batch in self.asked)


def draws(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [generator(seed, "attack", i) for i in range(count)]


def convnet(seed: int = 0, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    body = nn.Conv2d(3, 12, 3, stride=2), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2), nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(64, classes)).eval()


def pictures(count: int, height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    values = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
    return torch.cat([values.mul(1.4).sub(0.2)]).clamp(0, 1)  # some pixels sit on 0 and on 1


class Linear(nn.Module):
    """Two logits, the first a weighted sum of the pixels: the worst picture of a ball is known."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, inputs: Tensor) -> Tensor:
        score = (inputs * self.weight).flatten(1).sum(1)
        return torch.stack([score, torch.zeros_like(score)], 1)


def worst(inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    low, high = (inputs.double() - epsilon).clamp(min=0), (inputs.double() + epsilon).clamp(max=1)
    return torch.where(weight > 0, low, torch.where(weight < 0, high, inputs.double()))


def trained_digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network that reads the digits of scikit-learn at 97 % and more, and 160 pictures kept from it."""
    pixels, target = (np.asarray(part) for part in load_digits(return_X_y=True))
    inputs = torch.tensor(pixels.reshape(-1, 1, 8, 8) / 16, dtype=torch.float32).expand(-1, 3, -1, -1).contiguous()
    labels = torch.tensor(target)
    torch.manual_seed(0)
    body = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
    module = nn.Sequential(*body, nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    for _ in range(8):
        for batch in torch.randperm(1500).split(100):
            optimizer.zero_grad()
            F.cross_entropy(module(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    optimizer.zero_grad()
    module.eval()
    kept = slice(1637, 1797)
    assert (module(inputs[kept]).argmax(1) == labels[kept]).float().mean() > 0.9
    return module, inputs[kept], labels[kept]
