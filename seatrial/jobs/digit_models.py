"""The two networks that `seatrial trial` trains when it is given none: small, real, on handwritten digits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seatrial.core.cell import digest
from seatrial.core.pipeline import Pipeline, Resize
from seatrial.data.files import open_training_digits
from seatrial.data.load import load_input
from seatrial.train.loop import Training

EDGE_PX = 28
"""The networks' input. Pictures of 32 pixels are resized to it, so that a resize noise has something to act on."""
PIPELINE = Pipeline((EDGE_PX, EDGE_PX), Resize(short_side_px=EDGE_PX))
_SEED = 7


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(inner)))


class DigitsCNN(nn.Module):
    """A residual convolutional network for 28-pixel pictures of digits, about 33 million multiplications."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.low = nn.Sequential(_Residual(24), _Residual(24))
        self.down = nn.Sequential(nn.Conv2d(24, 48, 3, 2, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.high = nn.Sequential(_Residual(48), _Residual(48))
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.high(self.down(self.low(self.stem(x)))).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q @ k.transpose(-2, -1)) * (width // self.heads) ** -0.5).softmax(-1)
        x = x + self.project((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
        return x + self.narrow(nn.functional.gelu(self.widen(self.norm2(x))))


class DigitsViT(nn.Module):
    """A vision transformer for 28-pixel pictures of digits: 16 tokens from two convolutions, width 160, 4 blocks."""

    def __init__(self) -> None:
        super().__init__()
        width = 160
        # Two convolutions instead of one learn in a third of the steps (Xiao et al. 2021, "Early convolutions").
        self.patches = nn.Sequential(nn.Conv2d(3, 48, 3, 2, 1), nn.ReLU(), nn.Conv2d(48, width, 4, 4, 1))
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.Sequential(*(_Block(width, 4) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], Training]] = {
    "digits-cnn": (DigitsCNN, Training(epochs=6, peak_rate=4e-3)),
    "digits-vit": (DigitsViT, Training(epochs=18, batch=32, peak_rate=1.2e-3)),
}


def trained(name: str, *, progress: Callable[[int, int], None] | None = None) -> nn.Module:
    """Return `digits-cnn` or `digits-vit` trained on the training part of `digits`, from the cache where it was.

    The cache is `$SEATRIAL_CACHE`, else `~/.cache/seatrial`; its files are safetensors, named by a hash of the recipe.
    """
    make, training = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        module = make()
    shapes = str([(key, tuple(value.shape)) for key, value in module.state_dict().items()])
    folder = Path(os.environ.get("SEATRIAL_CACHE") or Path.home() / ".cache" / "seatrial")
    file = folder / f"{name}-{digest(repr(training), shapes, torch.__version__)[:12]}.safetensors"
    if file.exists():
        module.load_state_dict(load_file(file))
        return module.eval()
    dataset = open_training_digits()
    inputs = torch.stack([load_input(PIPELINE, dataset[i]) for i in range(len(dataset))])
    labels = torch.tensor(list(dataset.labels))
    training.fit(
        module,
        inputs,
        labels,
        lambda model, x, y: nn.functional.cross_entropy(model(x), y, label_smoothing=0.05),
        seed=_SEED,
        checkpoint=file.with_suffix(".ckpt"),
        augment=_shifted,
        progress=progress,
    )
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, aside)
    os.replace(aside, file)
    file.with_suffix(".ckpt").unlink(missing_ok=True)
    return module


def _shifted(batch: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift a batch by up to 3 pixels and change brightness, contrast and noise a little."""
    padded = nn.functional.pad(batch, (3, 3, 3, 3))
    top, left = rng.integers(0, 7, 2)
    moved = padded[:, :, top : top + EDGE_PX, left : left + EDGE_PX]
    gain = torch.from_numpy(rng.uniform(0.7, 1.2, (len(batch), 1, 1, 1)).astype(np.float32))
    noise = torch.from_numpy(rng.normal(0, 0.05, moved.shape).astype(np.float32))
    light = torch.from_numpy(rng.uniform(-0.1, 0.35, (len(batch), 1, 1, 1)).astype(np.float32))
    return (moved * gain + light + noise).clamp(0, 1)
