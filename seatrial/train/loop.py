"""Train a network with any loss, saving after each epoch so that a killed run goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from seatrial.core.chance import generator
from seatrial.errors import BadInput
from seatrial.numerics.layout import lay_out
from seatrial.train.objective import Objective

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Augment = Callable[[Tensor, np.random.Generator], Tensor]


@dataclass(frozen=True)
class Training:
    """An optimizer with a one-cycle learning rate.

    `epochs` passes over the data in batches of `batch`; `peak_rate` is the highest learning rate, reached after the
    share `warm_up` of all steps. `decayed` says which parameters decay: all, or those of two and more dimensions, which
    leaves out biases, gains of norms and scales of grids. Source: Loshchilov and Hutter 2019 (AdamW); Sutskever et al.
    2013 (SGD with Nesterov momentum); Smith and Topin 2019 (one cycle, here linear up and cosine down).
    """

    epochs: int
    batch: int = 64
    peak_rate: float = 3e-3
    weight_decay: float = 0.05
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    warm_up: float = 0.2
    decayed: Literal["all", "matrices"] = "all"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise BadInput(f"{self.epochs} epochs in batches of {self.batch}", "at least 1 of both", "give more")
        if not (self.peak_rate > 0 and self.weight_decay >= 0 and 0 <= self.momentum < 1 and 0 <= self.warm_up < 1):
            came = f"rate {self.peak_rate}, decay {self.weight_decay}, momentum {self.momentum}, warm-up {self.warm_up}"
            raise BadInput(came, "a rate above 0, a decay from 0, the others from 0 to below 1", "correct them")

    def fit(
        self,
        module: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        loss: Loss | Objective,
        *,
        seed: int,
        checkpoint: Path | None = None,
        augment: Augment | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> nn.Module:
        """Train `module` in place on `inputs` [n, ...] and `labels` [n] and return it in eval mode.

        With `checkpoint`, the state is written there after each epoch and taken up from there at the start. Order,
        augmentation, draws of the loss and torch's own generator (dropout) depend on (seed, epoch) alone. Raises
        BadInput where the mean loss of an epoch is not finite, and for a checkpoint of another training.
        """
        optimizer = self._optimizer(module)
        question = f"{self!r} seed {seed} on {len(inputs)} samples"
        start = 0
        if checkpoint is not None and checkpoint.exists():
            start = _resume(checkpoint, question, module, optimizer)
        steps = max(1, -(-len(inputs) // self.batch))
        lay_out(module, torch.channels_last)
        module.train()
        for epoch in range(start, self.epochs):
            rng = generator(seed, "epoch", epoch)
            order = torch.from_numpy(rng.permutation(len(inputs)))
            total = torch.zeros(())
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(generator(seed, "torch", epoch).integers(2**62)))
                for step in range(steps):
                    for group in optimizer.param_groups:
                        group["lr"] = self._rate((epoch * steps + step) / (self.epochs * steps))
                    rows = order[step * self.batch : (step + 1) * self.batch]
                    batch = inputs[rows] if augment is None else augment(inputs[rows], rng)
                    optimizer.zero_grad()
                    value = _value(loss, module, batch, labels[rows], rng)
                    value.backward()
                    optimizer.step()
                    total += value.detach().cpu()
            if not bool(total.isfinite()):
                came = f"a loss of {float(total / steps)} in epoch {epoch + 1}"
                raise BadInput(came, "a finite loss", f"lower the learning rate below {self.peak_rate:g}")
            if checkpoint is not None:
                state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
                _save(checkpoint, {**state, "epoch": epoch + 1, "question": question})
            if progress is not None:
                progress(epoch + 1, self.epochs)
        lay_out(module, torch.contiguous_format)
        return module.eval()

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        groups = self._groups([value for value in module.parameters() if value.requires_grad])
        if self.optimizer == "sgd":
            nesterov = self.momentum > 0
            return torch.optim.SGD(groups, lr=self.peak_rate, momentum=self.momentum, nesterov=nesterov)
        return torch.optim.AdamW(groups, lr=self.peak_rate)

    def _groups(self, parameters: Iterable[nn.Parameter]) -> list[dict[str, object]]:
        apart = self.decayed == "matrices"
        decaying = [value for value in parameters if value.ndim >= 2 or not apart]
        others = [value for value in parameters if value.ndim < 2 and apart]
        groups = ((decaying, self.weight_decay), (others, 0.0))
        return [{"params": values, "weight_decay": decay} for values, decay in groups if values]

    def _rate(self, done: float) -> float:
        if done < self.warm_up:
            return self.peak_rate * max(done / self.warm_up, 1e-3)
        return self.peak_rate * 0.5 * (1 + float(np.cos(np.pi * (done - self.warm_up) / (1 - self.warm_up))))


def _value(
    loss: Loss | Objective, module: nn.Module, batch: Tensor, labels: Tensor, rng: np.random.Generator
) -> Tensor:
    if isinstance(loss, Objective):
        return loss.loss(module, batch, labels, rng=rng)
    return loss(module, batch, labels)


def _resume(path: Path, question: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Take up the state in a checkpoint and return the number of epochs that are done."""
    state = torch.load(path, weights_only=True)
    if state.get("question") != question:
        came = f"checkpoint '{path.name}' of another training ({state.get('question')})"
        raise BadInput(came, question, "remove it, or write to another folder")
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"])


def _save(path: Path, state: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(state, aside)
    os.replace(aside, path)
