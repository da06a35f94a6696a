"""Train a network with any loss, saving after each epoch so that a killed run goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from seatrial.core.chance import generator

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Augment = Callable[[Tensor, np.random.Generator], Tensor]


@dataclass(frozen=True)
class Training:
    """AdamW with a one-cycle learning rate.

    `epochs` passes over the data in batches of `batch`; `peak_rate` is the highest learning rate. Source: Loshchilov
    and Hutter 2019 (AdamW); Smith and Topin 2019 (one cycle, here linear up over 20 % and cosine down).
    """

    epochs: int
    batch: int = 64
    peak_rate: float = 3e-3
    weight_decay: float = 0.05

    def fit(
        self,
        module: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        loss: Loss,
        *,
        seed: int,
        checkpoint: Path | None = None,
        augment: Augment | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> nn.Module:
        """Train `module` in place on `inputs` [n, ...] and `labels` [n] and return it in eval mode.

        With `checkpoint`, the state is written there after each epoch and taken up from there at the start. Order
        and augmentation depend on (seed, epoch) alone.
        """
        optimizer = torch.optim.AdamW(module.parameters(), lr=self.peak_rate, weight_decay=self.weight_decay)
        start = 0
        if checkpoint is not None and checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            start = int(state["epoch"])
        steps = max(1, -(-len(inputs) // self.batch))
        module.train()
        for epoch in range(start, self.epochs):
            rng = generator(seed, "epoch", epoch)
            order = torch.from_numpy(rng.permutation(len(inputs)))
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = self._rate((epoch * steps + step) / (self.epochs * steps))
                rows = order[step * self.batch : (step + 1) * self.batch]
                batch = inputs[rows] if augment is None else augment(inputs[rows], rng)
                optimizer.zero_grad()
                loss(module, batch, labels[rows]).backward()
                optimizer.step()
            if checkpoint is not None:
                _save(
                    checkpoint, {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
                )
            if progress is not None:
                progress(epoch + 1, self.epochs)
        return module.eval()

    def _rate(self, done: float) -> float:
        if done < 0.2:
            return self.peak_rate * max(done / 0.2, 1e-3)
        return self.peak_rate * 0.5 * (1 + float(np.cos(np.pi * (done - 0.2) / 0.8)))


def _save(path: Path, state: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(state, aside)
    os.replace(aside, path)
