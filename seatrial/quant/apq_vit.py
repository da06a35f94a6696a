"""APQ-ViT: grids of vision transformers chosen by what they do to the output of a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.precision import Precision
from seatrial.core.predictor import Inputs
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise, source
from seatrial.core.recipe import Affine, Recipe, Round
from seatrial.core.sites import Site, attribute, op_name, operators, signature
from seatrial.errors import BadInput
from seatrial.numerics.observe import tensors_of
from seatrial.numerics.ranges import MinMax
from seatrial.numerics.walk import Walk, call
from seatrial.quant.bias_correction import correct_biases
from seatrial.quant.block_error import BlockError, mean_of_channels
from seatrial.quant.block_search import BlockSearch
from seatrial.quant.blocks import Block, blocks_of
from seatrial.quant.loss_gradients import gives_logits, loss_gradients
from seatrial.quant.nearest import Nearest
from seatrial.quant.operator_kinds import SOFTMAX, WEIGHTED, computed_by
from seatrial.quant.rounded_block import RoundedBlock, RoundedNetwork, Values

ALIKE = "the network gives no logits, so there is no loss to weigh errors by: all errors of a block count alike"
_AT_ONCE, _CHUNK = 8, 2
"""Gradients are made for so many samples at once, of more samples for fewer: that holds what all blocks give."""


@final
@dataclass(frozen=True)
class APQViT(Quantizer):
    """Bottom-elimination blockwise calibration; on request, a softmax quantizer that keeps the largest probabilities.

    Blocks (an attention, a feed-forward part) are calibrated in order. In each, the grid of one site after the other is
    the candidate with the least error at the block's output (see `BlockError`), `rounds` times; in the first round
    candidates are `steps` shares of the min-max range up to 1.2 and the grid that `grids` starts from, later they lie
    around the present one, the two ends of a range by themselves too. Where `grids` corrects biases, the mean error of
    each channel does not count, because the bias takes it away.

    Source: Ding et al. 2022 (APQ-ViT), sections 3.2 and 3.3; Yuan et al. 2022 (PTQ4ViT), section 4.1, for the numbers.
    Departures: no code of the authors is public, so the formulas are rebuilt from what is said of them. Gradients are
    those of the cross entropy against the network's own class, as those of a divergence from its own prediction are
    zero. Blocks read rounded values, and a softmax is searched like all else: both were better on the network that was
    tried (docs/studies/apq-vit.md); `inputs` and `softmax` bring the paper's ways back. Weights have a grid for each
    channel where that is asked for; candidates scale all channels alike. Steps are searched from coarse to fine
    (`full_search` tries all), in two rounds where the paper's base takes three. Dynamic, grouped, narrow float and tied
    sites and inputs of the network keep the grid of `grids`.
    """

    grids: Nearest = field(default_factory=Nearest)
    error: BlockError = field(default_factory=BlockError)
    softmax: Literal["searched", "preserving", "map-error"] = "searched"
    """`preserving`: its range always reaches to the largest probability seen (MPQ), chosen by the block's output or,
    with `map-error`, by the squared error of the map itself; `searched`: like all else."""
    blocks: Literal["residual", "operators"] = "residual"
    """`operators`: every operator is a block of its own (no BBC)."""
    inputs: Literal["rounded", "float"] = "rounded"
    """What a block reads while it is calibrated: values of the float network, or of all that comes before, rounded."""
    rounds: int = 2
    steps: int = 100
    full_search: bool = False
    samples: int = 32
    """Calibration samples that blocks are run on, drawn from all; ranges come from all of them."""

    def __post_init__(self) -> None:
        if min(self.rounds, self.steps, self.samples) < 1:
            came = f"{self.rounds} rounds, {self.steps} steps, {self.samples} samples"
            raise BadInput(came, "at least one of each", "give larger numbers")

    def plan(
        self,
        graph: Graph,
        calibration: Sequence[Inputs],
        precision: Mapping[Site, Precision],
        *,
        rng: np.random.Generator,
    ) -> Recipe:
        """Return one round for each site asked for and what `grids` adds to them (migrations, biases).

        A network that gives no logits has no gradients: a note says that errors count alike. Raises BadInput without
        calibration data and for activations that are not finite, naming the site.
        """
        plain = replace(self.grids, bias_correction=False)
        start = plain.plan(graph, calibration, precision, rng=rng)
        others = tuple(edit for edit in start.edits if not isinstance(edit, Round))
        moved = realise(graph, Recipe(others, signature(graph)))
        widest = replace(plain, ranges=MinMax(), equalization="none").plan(moved, calibration, precision, rng=rng)
        grids = {edit.site: edit.grid for edit in start.rounds}
        ranges = {edit.site: edit.grid for edit in widest.rounds if isinstance(edit.grid, Affine)}
        named = operators(moved)
        searched = {
            site: wanted
            for site, wanted in precision.items()
            if site in ranges and wanted.tie is None and named[site.operator].op != "placeholder"
        }
        batch = _drawn(moved, calibration, self.samples, rng)
        weighted = self.error.weighted and gives_logits(moved)
        grids.update(self._searched(moved, batch, Recipe(start.rounds, signature(moved)), searched, ranges, weighted))
        rounds = [Round(site, grid) for site, grid in grids.items()]
        biases = correct_biases(moved, calibration, rounds) if self.grids.bias_correction else []
        notes = () if weighted or not self.error.weighted else (ALIKE,)
        return Recipe((*others, *biases, *rounds), signature(graph), (*start.notes, *notes))

    def _searched(
        self,
        graph: Graph,
        batch: tuple[Tensor, ...],
        start: Recipe,
        searched: Mapping[Site, Precision],
        ranges: Mapping[Site, Affine],
        weighted: bool,
    ) -> dict[Site, Affine]:
        named = operators(graph)
        names = {node: name for name, node in named.items()}
        network = RoundedNetwork.of(graph, start)
        maps = {site for site in searched if op_name(computed_by(source(named[site.operator], site.port))) in SOFTMAX}
        search = BlockSearch(self.softmax, maps, self.rounds, self.steps, self.full_search)
        starting = {block.operators[0]: block for block in self._blocks(graph, searched)}
        outputs = [named[block.output] for block in starting.values()]
        found: dict[Site, Affine] = {}
        chunk = _AT_ONCE if len(batch[0]) <= _AT_ONCE else _CHUNK
        with loss_gradients(graph, batch, outputs, chunk=chunk) if weighted else nullcontext({}) as gradients:
            walk = Walk(graph, [batch])
            behind = _Behind(network, batch) if self.inputs == "rounded" else None
            for node in walk:
                block = starting.get(names[node])
                if block is None:
                    continue
                last = named[block.output]
                read = _unrounded(walk, named, network) if behind is None else behind.before(block)
                part, wanted, gradient = RoundedBlock(network, block, read), walk.values(last)[0], gradients.get(last)
                step = float(wanted.max() - wanted.min()) / (
                    2 ** min(searched[site].bits for site in part.sites if site in searched) - 1
                )
                channels = _channels(block, named) if self.grids.bias_correction else None
                loss = partial(self.error.of, wanted=wanted, gradient=gradient, step=step, channels=channels)
                found.update(search.run(part, loss, searched, ranges))
                if behind is not None:
                    mean = None if channels is None else mean_of_channels(part.output - wanted, channels)
                    behind.settle(block, part, mean)
        return found

    def _blocks(self, graph: Graph, searched: Mapping[Site, Precision]) -> list[Block]:
        rounded = {site.operator: None for site in searched}
        return blocks_of(graph, rounded) if self.blocks == "residual" else [Block((name,)) for name in rounded]


def _channels(block: Block, named: Mapping[str, fx.Node]) -> int | None:
    """Return the axis of a block's channels, to which the bias of its last weighted operator is added."""
    for name in reversed(block.operators):
        if op_name(named[name]) in WEIGHTED:
            return -1 if op_name(named[name]) == "linear" else 1
    return None


class _Behind:
    """The values of the rounded network in front of a block, on the grids found so far."""

    def __init__(self, network: RoundedNetwork, batch: tuple[Tensor, ...]) -> None:
        self._network = network
        self._walk = Walk(network.graph, [batch])
        self._steps = iter(self._walk)
        self._shifts: dict[fx.Node, Tensor] = {}

    def before(self, block: Block) -> Values:
        """Go on to a block and return what nodes before it give."""
        first = self._network.operators[block.operators[0]]
        while (node := next(self._steps)) is not first:
            if node in self._shifts:
                self._walk.put(node, [self._walk.values(node)[0] - self._shifts[node]])
        return lambda node: self._walk.values(node)[0]

    def settle(self, block: Block, part: RoundedBlock, mean: Tensor | None) -> None:
        """Let what follows read a block as it is now, without the mean error that corrected biases take away."""
        for node, value in part.weights.items():  # made before their grids were searched
            self._walk.put(node, [value])
        if mean is not None:
            self._shifts[self._network.operators[block.output]] = mean


def _unrounded(walk: Walk, named: Mapping[str, fx.Node], network: RoundedNetwork) -> Values:
    """Return what a node would give where all that comes before it is float; a round in front of a block counts."""
    given = {node: named[name] for name, node in network.operators.items() if name in named}

    def value(node: fx.Node) -> Any:
        if node in given:
            return walk.values(given[node])[0]
        return attribute(network.graph.module, str(node.target)) if node.op == "get_attr" else call(node, value)

    return value


def _drawn(graph: Graph, calibration: Sequence[Inputs], samples: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Return samples drawn from all batches of the first one's length, in order."""
    batches = [tensors_of(graph, batch) for batch in calibration]
    shapes = [[tensor.shape[1:] for tensor in batch] for batch in batches]
    alike = [batch for batch, shape in zip(batches, shapes, strict=True) if shape == shapes[0]]
    starts = np.cumsum([0, *(len(batch[0]) for batch in alike)])
    chosen = np.sort(rng.choice(starts[-1], min(samples, starts[-1]), replace=False))
    rows: list[list[Tensor]] = []
    for batch, start, end in zip(alike, starts, starts[1:]):
        inside = torch.from_numpy(chosen[(chosen >= start) & (chosen < end)] - start)
        rows.append([tensor[inside] for tensor in batch])
    return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
