"""Mask-guided quantization estimation (MQE): the sensitivity of groups from a few masked forward passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from seatrial.core.carrying import carries
from seatrial.core.graph import Graph
from seatrial.core.predictor import Inputs
from seatrial.core.realise import source
from seatrial.core.recipe import Recipe
from seatrial.core.sites import Site, op_name
from seatrial.errors import BadInput
from seatrial.numerics.observe import tensors_of
from seatrial.quant.direct_sensitivity import Answers, Groups, check, quotient
from seatrial.quant.resumed import KEPT_BYTES, Resumed, in_parts


@dataclass(frozen=True)
class MaskGuided:
    """Masks each rounded tensor, reads the divergence of the answers, and rescales it to each precision's error.

    For a site, w is KL(f || f with the site's tensor masked), in nats, and S = w * E_round / E_mask, where E is the
    relative squared error that rounding or masking makes at the outputs of the operators that read the site, on clean
    inputs. The sensitivity of a group is the sum over its sites. So the number of forward passes does not depend on
    that of precisions, and a tensor that several groups read is masked once.

    Limits: a mask errs in proportion to the values, a grid clips the largest and rounds all others alike. Where
    activations have outliers the ranks suffer: EtinyNet in W8A8 ranks at 0.33, 0.42 and 0.56 against `direct` on 16, 32
    and 48 pictures. Other networks and all figures: benchmarks/mqe.py.

    Source: Huang et al. 2023 (OHQ), mask-guided quantization estimation: masked operators, KL divergence.
    Departures: the share that the paper masks and how a mask tells bit-widths apart are not known to us. The rescaling
    follows HAWQ (Dong et al. 2019): KL is quadratic in a small perturbation. It is taken at the outputs of operators,
    and activations are masked as weights are, because in 8 bits their rounds count as much. A mask of full
    strength saturates the KL, so a masked value goes `strength` of the way to zero, and the rest grows so that the
    mean stays, as in dropout. Where outputs are no logits the relative squared error stands for the KL, as in `direct`.
    """

    share: float = 0.1
    """Bernoulli rate of values set to zero."""
    masks: int = 4
    """Masks drawn for each site: the batch is cut into as many parts, each with a mask of its own."""
    strength: float = 0.1
    """How far masked values go: 1 sets them to zero."""
    local_samples: int = 4
    """Samples of the batch on which the errors at the operators' outputs are compared."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or not 0 < self.strength <= 1 or self.masks < 1 or self.local_samples < 1:
            raise BadInput(f"{self}", "0 < share < 1, 0 < strength <= 1, at least one mask and sample", "correct it")

    def estimate(
        self,
        graph: Graph,
        recipes: Mapping[str, Recipe],
        groups: Groups,
        batch: Inputs,
        *,
        rng: np.random.Generator,
        memory_bytes: int = KEPT_BYTES,
    ) -> dict[tuple[str, str], float]:
        """Return the estimated divergence of each group in each precision, in nats; see `direct` for what it estimates.

        Raises BadInput where a group names a precision without a recipe or a site that its recipe does not round, for
        an empty batch and for outputs that are not finite.
        """
        check(recipes, groups)
        named = {site for by_precision in groups.values() for sites in by_precision.values() for site in sites}
        seeds = {site: int(rng.integers(2**63)) for site in sorted(named)}
        first = next(in_parts(graph, batch, memory_bytes=memory_bytes))
        parts = self._parts(graph, batch, fitting=len(first[0]))
        moved = self._moved(graph, parts, seeds)
        few = [row[: self.local_samples] for row in first] if isinstance(graph.inputs[0].shape[0], str) else first
        found: dict[tuple[str, str], float] = {}
        for precision, recipe in recipes.items():
            asked = {group: sites[precision] for group, sites in groups.items() if precision in sites}
            network = Resumed(graph, recipe)
            network.clean(few)
            by_site = {
                site: moved[site] * self._ratio(network, site, seeds[site], len(parts))
                for site in sorted({site for sites in asked.values() for site in sites})
            }
            network.forget()
            for group, sites in asked.items():
                found[group, precision] = sum(by_site[site] for site in sorted(sites))
        return {(group, precision): found[group, precision] for group in groups for precision in groups[group]}

    def _parts(self, graph: Graph, batch: Inputs, *, fitting: int) -> list[tuple[Tensor, ...]]:
        """Return the batch cut into a part for each mask, and further where these exceed `fitting` samples."""
        rows = tensors_of(graph, batch)
        if not isinstance(graph.inputs[0].shape[0], str):
            return [rows] * self.masks
        size = min(fitting, -(-len(rows[0]) // self.masks))
        return [tuple(row[start : start + size] for row in rows) for start in range(0, len(rows[0]), size)]

    def _moved(self, graph: Graph, parts: Sequence[tuple[Tensor, ...]], seeds: Mapping[Site, int]) -> dict[Site, float]:
        """Return the divergence that masking each site makes."""
        totals, scale = dict.fromkeys(seeds, 0.0), 0.0
        network = Resumed(graph)
        for i, tensors in enumerate(parts):
            answers = Answers.of(graph, tensors)
            scale += answers.scale
            network.clean(tensors)
            for site, seed in seeds.items():
                output = network.run_on(self._masked(network, site, (seed, i)))
                totals[site] += float(answers.moved_by(output).sum())
        return {site: quotient(total, scale) for site, total in totals.items()}

    def _ratio(self, network: Resumed, site: Site, seed: int, parts: int) -> float:
        """Return the error that rounding makes over the mean of those that the masks make."""
        ends = _readers(network, site)
        rounded = _error(network, network.switched_on([site]), ends)
        masked = [_error(network, self._masked(network, site, (seed, i)), ends) for i in range(min(parts, self.masks))]
        return rounded / np.mean(masked).item() if sum(masked) > 0 else 0.0

    def _masked(self, network: Resumed, site: Site, seed: tuple[int, int]) -> dict[fx.Node, Callable[..., Any]]:
        """Return the call that masks the tensor at a site, for all its readers or for its operator alone."""
        if site.operator not in network.operators:
            raise BadInput(f"the site '{site}' in a group", "an operator of the graph", "group the recipe's rounds")
        node = network.operators[site.operator]
        value = source(node, site.port)
        chance = np.random.default_rng(seed)

        def masked() -> Tensor:
            clean = network.values[value]
            kept = torch.from_numpy(chance.random(tuple(clean.shape), dtype=np.float32) >= self.share).to(clean.dtype)
            return clean * (1 + self.strength * (kept / (1 - self.share) - 1))

        def call(*_: Any, **__: Any) -> Any:
            if value is node:
                return masked()
            values = {**{read: network.values[read] for read in node.all_input_nodes}, value: masked()}
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]

        return {node: call}


def _readers(network: Resumed, site: Site) -> list[fx.Node]:
    """Return the operators that read the tensor at a site, behind those that carry values on."""
    node = network.operators[site.operator]
    if site.port != "output":
        return [node]
    found: dict[fx.Node, None] = {}
    waiting, passed = [node], set(network.rounds.values())
    while waiting:
        for user in waiting.pop().users:
            value = network.values.get(user)
            if user in passed or carries(user) or op_name(user) == "cat" or isinstance(value, list | tuple):
                waiting.append(user)
            elif isinstance(value, Tensor) and value.is_floating_point() and user.op != "output":
                found[user] = None
    return list(found) or [network.rounds.get(site, node)]


def _error(network: Resumed, calls: Mapping[fx.Node, Callable[..., Any]], ends: Sequence[fx.Node]) -> float:
    """Return the sum over `ends` of |value - clean|^2 / |clean|^2."""
    total = 0.0
    for node, value in network.local(calls, ends).items():
        clean = network.values[node].double()
        energy = float(clean.square().sum())
        total += float((value.double() - clean).square().sum()) / energy if energy > 0 else 0.0
    return total
