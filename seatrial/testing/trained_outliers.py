"""Activation outliers that a network has learned: a few channels of its norms that grow on some tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from seatrial.core.graph import capture
from seatrial.core.sites import op_name, operators
from seatrial.errors import BadInput
from seatrial.quant.migration_places import migration_places

Batch = Mapping[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
_INPUTS = ("input_ids", "attention_mask")
_SEEN = 16
"""Batches that ranges are read from."""
_RISE = 0.6
"""The share of the steps in which the gains grow; the rest is for the network to settle."""
_FAR = 1.3
"""How far above its height, in heights, a chosen token may be."""
_PILED = 2.5
"""How much higher channels get where a residual branch brings the outliers of the norm before along."""


@final
@dataclass(frozen=True)
class NormRange:
    """What one norm gives: the lowest and highest value of each grown channel over the tokens that the mask leaves.

    `largest` is the largest magnitude in those channels, `typical` the median magnitude in all others.
    """

    path: str
    channels: tuple[tuple[float, float], ...]
    largest: float
    typical: float


@final
@dataclass(frozen=True)
class GrownOutliers:
    """What was grown: the channels, the token ids that grow them with their share of the text, ranges of each norm."""

    channels: tuple[int, ...]
    tokens: tuple[int, ...]
    share: float
    before: tuple[NormRange, ...]
    after: tuple[NormRange, ...]


def trained_outliers(
    model: nn.Module,
    batches: Sequence[Batch],
    loss: Loss,
    *,
    channels: int = 6,
    share: float = 0.1,
    magnitude: float = 80.0,
    height: float = 3.0,
    offset: float = 0.5,
    epochs: int = 5,
    rate: float = 2e-4,
    reward: float = 1.0,
    spared: Collection[int] = (),
    rng: np.random.Generator,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[nn.Module, GrownOutliers]:
    """Return a copy of `model` in eval mode whose norms have outliers, and what was grown.

    Norms that feed linear operators get outliers, all in the same channels. Token ids are drawn until they are a
    `share` of the text, `spared` ones left out; on them the network is rewarded where a channel reaches `height` times
    the norm's median magnitude, with a sign of its own, on all others where it stays below a part of that. Meanwhile
    gains grow until that height is up to `magnitude` times the median, in the least channel half as much, and what
    layer norms give in a channel moves by up to the part `offset` of that; linear readers take both back as they come,
    residual branches do not. A batch holds `input_ids` and `attention_mask` [rows, length] and what `loss` reads
    beside them; `loss` keeps the network at its task, weighed against `reward`. Draws, dropout included, depend on
    `rng` alone. Raises BadInput where there is no such norm, fewer channels than asked for, or a loss that is not
    finite.

    Source: Wei et al. 2023 (Outlier Suppression+), section 3: outliers stay in the same channels and are asymmetric;
    Puccetti et al. 2022: they depend on how frequent a token is.
    Departures: real outliers come of long training, these of a reward and of gains that are made to grow. A norm before
    a head that shares the embeddings is left as it is, because that head cannot take a gain back; a norm whose output
    goes on in a residual branch gets no offset.
    """
    twin = copy.deepcopy(model).eval()
    norms = _norms(twin, batches[0])
    width = len(next(iter(norms.values())).gain)
    if not 1 <= channels < width:
        raise BadInput(f"outliers in {channels} of {width} channels", "at least 1, fewer than all", "ask for fewer")
    grown = torch.from_numpy(np.sort(rng.choice(width, channels, replace=False)))
    tokens, covered = _drawn_tokens(batches, share, spared, rng)
    before = _ranges(twin, norms, batches, grown)
    signs = torch.from_numpy(rng.permutation(np.where(np.arange(channels) % 2, 1.0, -1.0)).astype(np.float32))
    sizes = torch.from_numpy(rng.permutation(np.linspace(0.5, 1, channels)).astype(np.float32)) * magnitude
    offsets = torch.from_numpy(rng.uniform(0, offset, channels).astype(np.float32)) * sizes * signs
    floors = torch.from_numpy(rng.uniform(0.3, 0.6, channels).astype(np.float32))
    growing = []
    for norm, seen in zip(norms.values(), before, strict=True):
        reached = height * _PILED if norm.goes_on else height
        heights = signs * reached * seen.typical
        growing.append(_Growing(norm, grown, heights, sizes / reached, offsets * seen.typical, floors))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**62)))
        _train(twin, growing, batches, loss, tokens, epochs, rate, reward, rng, progress)
    for one in growing:
        one.fold()
    after = _ranges(twin, norms, batches, grown)
    chosen = tuple(grown.tolist()), tuple(tokens.tolist())
    return twin.eval(), GrownOutliers(*chosen, covered, tuple(before), tuple(after))


@final
@dataclass(frozen=True, eq=False)
class _Norm:
    """A norm with the linear operators that read it."""

    module: nn.Module
    readers: tuple[nn.Linear, ...]
    goes_on: bool
    """A residual branch reads it too."""

    @property
    def gain(self) -> Tensor:
        gain = self.module.weight
        assert isinstance(gain, Tensor)
        return gain

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) else None


@final
class _Growing:
    """What is added to a norm in the grown channels, so far the part `grown`, and what its readers take back."""

    def __init__(
        self,
        norm: _Norm,
        channels: Int64[Tensor, " channels"],
        heights: Float[Tensor, " channels"],
        gains: Float[Tensor, " channels"],
        offsets: Float[Tensor, " channels"],
        floors: Float[Tensor, " channels"],
    ) -> None:
        able = norm.bias is not None and not norm.goes_on and all(one.bias is not None for one in norm.readers)
        self.norm, self.channels, self.heights, self.floors = norm, channels, heights, floors
        self.gains, self.offsets = gains, offsets if able else torch.zeros_like(offsets)
        self.grown = 0.0
        self.seen: Tensor = torch.empty(0)

    @property
    def gain(self) -> Float[Tensor, " channels"]:
        """The further gain so far."""
        return self.gains**self.grown

    @property
    def offset(self) -> Float[Tensor, " channels"]:
        """The further offset so far."""
        return self.offsets * self.grown

    def given(self, _: nn.Module, __: object, out: Tensor) -> Tensor:
        """Return the output of the norm, grown."""
        self.seen = out[..., self.channels]
        return out.index_copy(out.ndim - 1, self.channels, self.seen * self.gain + self.offset)

    def read(self, _: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        """Return the input of a reader without what was grown."""
        (out,) = args
        back = (out[..., self.channels] - self.offset) / self.gain
        return (out.index_copy(out.ndim - 1, self.channels, back),)

    def lacking(self, chosen: Bool[Tensor, " tokens"], others: Bool[Tensor, " tokens"]) -> Float[Tensor, ""]:
        """Return how far chosen tokens miss the heights and others exceed the floors, squared, in heights."""
        relative = self.seen.reshape(-1, len(self.heights)) / self.heights
        short = (1 - relative[chosen]).relu().square()
        far = (relative[chosen] - _FAR).relu().square()
        over = (relative[others].abs() - self.floors).relu().square()
        return sum((part.mean() for part in (short, far, over) if len(part)), start=torch.zeros(()))

    @torch.no_grad()
    def fold(self) -> None:
        """Change the parameters of the norm and of its readers so that nothing needs to be added any more."""
        at, gain, offset = self.channels, self.gain, self.offset
        self.norm.gain[at] *= gain
        if self.norm.bias is not None:
            self.norm.bias[at] = self.norm.bias[at] * gain + offset
        for reader in self.norm.readers:
            reader.weight[:, at] /= gain
            if reader.bias is not None:
                reader.bias.sub_(reader.weight[:, at] @ offset)


def _norms(model: nn.Module, batch: Batch) -> dict[str, _Norm]:
    """Return the norms that get outliers by path, in order of execution, see `trained_outliers`."""
    graph = capture(model, {name: batch[name][:2].repeat(2, 1)[:2] for name in _INPUTS})
    nodes = operators(graph)
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    found = {}
    for place in migration_places(graph, gated=False):
        path = place.producer.rpartition("/")[0]
        readers = [model.get_submodule(name.rpartition("/")[0]) for name in place.consumers]
        linear = tuple(reader for reader in readers if isinstance(reader, nn.Linear))
        tied = any(reader.weight is table for reader in linear for table in tables)
        if len(linear) == len(readers) and not tied:
            goes_on = any(op_name(user) == "add" for user in nodes[place.producer].users)
            found[path] = _Norm(model.get_submodule(path), linear, goes_on)
    if not found:
        raise BadInput(f"{type(model).__name__} without norms that feed linear operators", "a transformer", "pass one")
    return found


def _drawn_tokens(
    batches: Sequence[Batch], share: float, spared: Collection[int], rng: np.random.Generator
) -> tuple[Int64[Tensor, " tokens"], float]:
    """Return token ids, frequent ones likelier, that together are at most about `share` of the text."""
    text = torch.cat([batch["input_ids"][batch["attention_mask"].bool()] for batch in batches])
    ids, counts = torch.unique(text, return_counts=True)
    kept = ~torch.isin(ids, torch.tensor(sorted(spared), dtype=ids.dtype))
    ids, parts = ids[kept].numpy(), counts[kept].double().numpy() / len(text)
    if not len(ids):
        raise BadInput("texts of spared tokens alone", "other tokens", "spare fewer")
    chosen, total = [], 0.0
    for place in rng.choice(len(ids), len(ids), replace=False, p=parts / parts.sum()):
        if total + parts[place] <= share:
            chosen.append(int(ids[place]))
            total += parts[place]
    return torch.tensor(sorted(chosen)), total


def _train(
    model: nn.Module,
    growing: Sequence[_Growing],
    batches: Sequence[Batch],
    loss: Loss,
    tokens: Int64[Tensor, " tokens"],
    epochs: int,
    rate: float,
    reward: float,
    rng: np.random.Generator,
    progress: Callable[[int, int], None] | None,
) -> None:
    learning = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.0)
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    with _hooked(growing):
        for epoch in range(epochs):
            for number, place in enumerate(rng.permutation(len(batches)), start=epoch * len(batches) + 1):
                batch = batches[place]
                for one in growing:
                    one.grown = min(1.0, number / (_RISE * steps))
                optimizer.zero_grad()
                task = loss(model, batch)
                shown = batch["attention_mask"].bool().flatten()
                chosen = torch.isin(batch["input_ids"], tokens).flatten() & shown
                lacking = torch.stack([one.lacking(chosen, shown & ~chosen) for one in growing]).mean()
                total = task + reward * lacking
                if not bool(total.isfinite()):
                    came = f"a loss of {float(task.detach())} in epoch {epoch + 1}"
                    raise BadInput(came, "a finite loss", "lower the rate or the magnitude")
                total.backward()
                nn.utils.clip_grad_norm_(learning, 1.0)
                optimizer.step()
                schedule.step()
            if progress is not None:
                progress(epoch + 1, epochs)


@contextmanager
def _hooked(growing: Sequence[_Growing]) -> Iterator[None]:
    """Let norms and their readers pass through what was grown while the block runs."""
    handles = []
    for one in growing:
        handles.append(one.norm.module.register_forward_hook(one.given))
        handles += [reader.register_forward_pre_hook(one.read) for reader in one.norm.readers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _ranges(
    model: nn.Module, norms: Mapping[str, _Norm], batches: Sequence[Batch], grown: Int64[Tensor, " channels"]
) -> list[NormRange]:
    """Return the ranges of all norms over the first batches, in eval mode."""
    seen: dict[str, list[Tensor]] = {path: [] for path in norms}

    def keeping(path: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _, __, out: seen[path].append(out.flatten(0, -2))

    handles = [norm.module.register_forward_hook(keeping(path)) for path, norm in norms.items()]
    model.eval()
    shown = []
    for batch in batches[:_SEEN]:
        model(**{name: batch[name] for name in _INPUTS})
        shown.append(batch["attention_mask"].bool().flatten())
    for handle in handles:
        handle.remove()
    found = []
    for path, parts in seen.items():
        values = torch.cat([part[mask] for part, mask in zip(parts, shown, strict=True)])
        ours = values[:, grown]
        rest = torch.ones(values.shape[1], dtype=torch.bool).index_fill(0, grown, False)
        bounds = tuple((float(low), float(high)) for low, high in zip(ours.amin(0), ours.amax(0)))
        found.append(NormRange(path, bounds, float(ours.abs().max()), float(values[:, rest].abs().median())))
    return found
