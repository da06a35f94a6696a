"""The baseline quantizer: each value goes to the nearest code of a grid read off the calibration data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.precision import Precision
from seatrial.core.predictor import Inputs
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise, source
from seatrial.core.recipe import Affine, Dynamic, Edit, FloatType, Grouped, Recipe, Round
from seatrial.core.sites import Site, attribute, op_name, operators, signature
from seatrial.errors import no_calibration
from seatrial.numerics.observe import tensors_of, watch
from seatrial.numerics.ranges import MeanSquaredError, Observed, Range, grid_for, weight_grid
from seatrial.quant.bias_correction import correct_biases
from seatrial.quant.channel_ranges import kept_rows, token_mask
from seatrial.quant.equalization import equalize, equalize_depthwise
from seatrial.quant.nearest_answers import nearest_answers
from seatrial.quant.weight_grids import grouped_grid


@dataclass(frozen=True)
class Nearest(Quantizer):
    """Round to nearest: min-max weights, activation ranges by `ranges`, then biases corrected.

    Source: Jacob et al. 2018 (affine grids); Choukroun et al. 2019 (ranges); Nagel et al. 2019, section 4 and appendix
    D (equalization, empirical bias correction).
    Departures: ranges stop where all readers do (0 to 6 before a ReLU6); sites tied by a concatenation share the
    union of their ranges; why the default is not min-max: docs/decisions/0005-default-ranges.md.
    """

    ranges: Range = field(default_factory=MeanSquaredError)
    bias_correction: bool = True
    equalization: Literal["none", "depthwise", "cross-layer"] = "depthwise"
    """`depthwise`: the channels of tensors that a depthwise convolution writes or reads share one range (costs
    nothing); `cross-layer`: that, after the weights of neighboring operators were equalized; `none`: neither."""

    def plan(
        self,
        graph: Graph,
        calibration: Sequence[Inputs],
        precision: Mapping[Site, Precision],
        *,
        rng: np.random.Generator,
    ) -> Recipe:
        """Return one round for each site asked for and, with bias correction, new biases of weighted operators.

        Raises BadInput without calibration data or where an activation is not finite.
        """
        if not calibration:
            raise no_calibration()
        migrations = self._equalized(graph, calibration, precision)
        original, graph = graph, realise(graph, Recipe(tuple(migrations), signature(graph)))
        named = operators(graph)
        rounds: list[Round] = []
        activations: dict[Site, Precision] = {}
        for site, wanted in precision.items():
            if wanted.float_type is not None:
                rounds.append(Round(site, FloatType(wanted.float_type)))
            elif site.port == "weight":
                value = source(named[site.operator], "weight")
                rounds.append(Round(site, grid_of_weight(attribute(graph.module, str(value.target)), wanted)))
            elif wanted.dynamic:
                rounds.append(Round(site, Dynamic(wanted.bits, wanted.symmetric, wanted.group)))
            else:
                activations[site] = wanted
        observed = self._observe(graph, calibration, activations)
        rounds += self._suited(graph, calibration, rounds, observed, activations)
        biases = correct_biases(graph, calibration, rounds) if self.bias_correction else []
        edits: list[Edit] = [*migrations, *biases, *rounds]
        return Recipe(tuple(edits), signature(original))

    def _suited(
        self,
        graph: Graph,
        calibration: Sequence[Inputs],
        weights: Sequence[Round],
        observed: Mapping[Site, Observed],
        activations: Mapping[Site, Precision],
    ) -> list[Round]:
        """Return the rounds of the activations by the range that suits the network best, of those that are tried."""
        fewest = min((wanted.bits for wanted in activations.values()), default=8)
        tried = [
            [Round(site, _grid(one, observed[site], wanted)) for site, wanted in activations.items()]
            for one in self.ranges.tried(fewest)
        ]
        if len(tried) == 1 or not any(seen.tokens for seen in observed.values()):
            return tried[0]
        return tried[nearest_answers(graph, calibration, [[*weights, *rounds] for rounds in tried])]

    def _equalized(
        self, graph: Graph, calibration: Sequence[Inputs], precision: Mapping[Site, Precision]
    ) -> list[Edit]:
        if self.equalization == "none":
            return []
        first = equalize(graph) if self.equalization == "cross-layer" else []
        balanced = realise(graph, Recipe(tuple(first), signature(graph)))
        return [*first, *equalize_depthwise(balanced, calibration, precision)]

    def _observe(
        self, graph: Graph, calibration: Sequence[Inputs], sites: Mapping[Site, Precision]
    ) -> dict[Site, Observed]:
        if not sites:
            return {}
        named = operators(graph)
        nodes = {site: source(named[site.operator], site.port) for site in sites}
        seen = {
            node: Observed(
                _window(node),
                str(site),
                counted=self.ranges.needs_counts,
                by_token=self.ranges.needs_tokens and _holds_tokens(node),
            )
            for site, node in nodes.items()
        }
        _watch_tokens(graph, calibration, {node: observed.see for node, observed in seen.items()})
        for group in _tied(sites).values():
            tied = {nodes[site]: seen[nodes[site]] for site in group}
            seen.update(dict.fromkeys(tied, Observed.union([*tied.values()])))
        return {site: seen[node] for site, node in nodes.items()}


def _watch_tokens(
    graph: Graph, calibration: Sequence[Inputs], seen: Mapping[fx.Node, Callable[[Tensor], None]]
) -> None:
    """Show values as `watch` does, without the rows of what fills sentences up."""
    for batch in calibration:
        mask = token_mask(graph, tensors_of(graph, batch))
        watch(graph, [batch], {node: partial(_show, see, mask) for node, see in seen.items()})


def _show(see: Callable[[Tensor], None], mask: Tensor | None, value: Tensor) -> None:
    see(value if mask is None or value.ndim < 2 else kept_rows(value, mask))


def _holds_tokens(node: fx.Node) -> bool:
    """Tell whether the last axis of a value holds a token's channels: a linear operator or layer norm says so."""
    return any(op_name(one) in ("linear", "layer_norm") for one in (node, *node.users))


def grid_of_weight(weight: Tensor, wanted: Precision) -> Affine | Grouped:
    """Return the min-max grid of a weight: of the tensor, its channels, or groups of its inputs, as asked for."""
    return grouped_grid(weight, wanted) if wanted.group else weight_grid(weight, wanted)


def _window(node: fx.Node) -> tuple[float, float]:
    """Return the range that the values of a tensor cannot leave, or outside of which no reader tells them apart."""
    own = _limits(node) if op_name(node) in ("relu", "relu6", "hardtanh") else (-math.inf, math.inf)
    limits = [_limits(reader) for reader in node.users if op_name(reader) != "sym_size"]
    if not limits:
        return own
    return max(own[0], min(low for low, _ in limits)), min(own[1], max(high for _, high in limits))


def _limits(reader: fx.Node) -> tuple[float, float]:
    kind = op_name(reader)
    if kind == "hardtanh":
        given = [float(end) for end in reader.args[1:3]]  # pyright: ignore[reportArgumentType]
        return given[0] if given else -1.0, given[1] if len(given) > 1 else 1.0
    known = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0), "hardsigmoid": (-3.0, 3.0), "hardswish": (-3.0, math.inf)}
    return known.get(kind, (-math.inf, math.inf))


def _tied(sites: Mapping[Site, Precision]) -> dict[str, list[Site]]:
    groups: dict[str, list[Site]] = {}
    for site, wanted in sites.items():
        if wanted.tie is not None:
            groups.setdefault(wanted.tie, []).append(site)
    return groups


def _grid(ranges: Range, observed: Observed, wanted: Precision) -> Affine:
    low, high = ranges.choose(observed, wanted)
    return grid_for(low, high, wanted)
