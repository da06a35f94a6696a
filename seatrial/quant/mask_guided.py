"""Mask-guided quantization estimation (MQE): the sensitivity of groups from a few masked forward passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from seatrial.core.carrying import carries
from seatrial.core.graph import Graph
from seatrial.core.predictor import Inputs
from seatrial.core.qdq import shaped
from seatrial.core.recipe import Affine, Recipe
from seatrial.core.sites import Site, op_name
from seatrial.errors import BadInput
from seatrial.numerics.observe import tensors_of
from seatrial.quant.direct_sensitivity import Answers, Groups, check, quotient
from seatrial.quant.resumed import KEPT_BYTES, Resumed, in_parts


@dataclass(frozen=True)
class MaskGuided:
    """Rounds masked values of each tensor, reads the divergence of the answers, and rescales it to each precision.

    A site is asked once for all precisions: a mask draws values of its tensor, and those are rounded with a step
    between the finest and the coarsest that a recipe has there. w is KL(f || f with these values moved), in nats, and
    S = w * E_round / E_mask, where E is the relative squared error that a precision's round or the mask makes at the
    outputs of the operators that read the site, on clean inputs. The sensitivity of a group is the sum over its sites.
    So the number of forward passes does not depend on that of precisions, and a tensor that several groups read is
    masked once. Ranks against `direct` and the cost of both: benchmarks/mqe.py, docs/studies/ohq.md.

    Source: Huang et al. 2023 (OHQ), mask-guided quantization estimation: masked operators, KL divergence.
    Departures: the share that the paper masks and how a mask tells bit-widths apart are not known to us. Masked values
    are rounded, not set to zero: a mask errs in proportion to the values, a grid clips the largest and rounds all
    others alike, and where activations have outliers ranks by zeros mislead (docs/decisions/0009-ohq.md). The rescaling
    follows HAWQ (Dong et al. 2019): KL is quadratic in a small perturbation. It is taken at the outputs of operators,
    and activations are masked as weights are, because in 8 bits their rounds count as much. Where outputs are no
    logits the relative squared error stands for the KL, as in `direct`.
    """

    share: float = 0.9
    """Bernoulli rate of values that are rounded."""
    masks: int = 4
    """Masks drawn for each site: the batch is cut into as many parts, each with a mask of its own."""
    local_samples: int = 4
    """Samples of the batch on which the errors at the operators' outputs are compared."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.masks < 1 or self.local_samples < 1:
            raise BadInput(f"{self}", "0 < share <= 1, at least one mask and sample", "correct it")

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
        asked: dict[Site, set[str]] = {}
        for by_precision in groups.values():
            for precision, sites in by_precision.items():
                for site in sites:
                    asked.setdefault(site, set()).add(precision)
        seeds = {site: int(rng.integers(2**63)) for site in sorted(asked)}
        bits = {
            name: {edit.site: edit.grid.bits if isinstance(edit.grid, Affine) else math.inf for edit in recipe.rounds}
            for name, recipe in recipes.items()
        }
        anchors = {site: _anchor(site, {name: bits[name] for name in sorted(asked[site])}) for site in seeds}
        first = next(in_parts(graph, batch, memory_bytes=memory_bytes))
        parts = self._parts(graph, batch, fitting=len(first[0]))
        few = [row[: self.local_samples] for row in first] if isinstance(graph.inputs[0].shape[0], str) else first
        moved: dict[Site, float] = {}  # what a relative squared error of 1 at a site's readers would diverge by
        for finest in dict.fromkeys(name for name, _ in anchors.values()):
            network = Resumed(graph, recipes[finest])
            own = {site: (seeds[site], wider) for site, (name, wider) in anchors.items() if name == finest}
            moved |= self._moved(graph, network, parts, few, own)
        found: dict[tuple[str, str], float] = {}
        for precision, recipe in recipes.items():
            wanted = {group: sites[precision] for group, sites in groups.items() if precision in sites}
            network = Resumed(graph, recipe)
            network.clean(few)
            by_site = {
                site: moved[site] * _error(network, network.switched_on([site]), _readers(network, site))
                for site in sorted({site for sites in wanted.values() for site in sites})
            }
            network.forget()
            for group, sites in wanted.items():
                found[group, precision] = sum(by_site[site] for site in sorted(sites))
        return {(group, precision): found[group, precision] for group in groups for precision in groups[group]}

    def _parts(self, graph: Graph, batch: Inputs, *, fitting: int) -> list[tuple[Tensor, ...]]:
        """Return the batch cut into a part for each mask, and further where these exceed `fitting` samples."""
        rows = tensors_of(graph, batch)
        if not isinstance(graph.inputs[0].shape[0], str):
            return [rows] * self.masks
        size = min(fitting, -(-len(rows[0]) // self.masks))
        return [tuple(row[start : start + size] for row in rows) for start in range(0, len(rows[0]), size)]

    def _moved(
        self,
        graph: Graph,
        network: Resumed,
        parts: Sequence[tuple[Tensor, ...]],
        few: Sequence[Tensor],
        sites: Mapping[Site, tuple[int, float]],
    ) -> dict[Site, float]:
        """Return the divergence that masking each site makes over the squared error at its readers.

        `sites` holds the seed of a site and by what its steps are wider than its grid's.
        """
        totals, scale = dict.fromkeys(sites, 0.0), 0.0
        for i, tensors in enumerate(parts):
            answers = Answers.of(graph, tensors)
            scale += answers.scale
            network.clean(tensors)
            for site, (seed, wider) in sites.items():
                output = network.run_on(self._masked(network, site, (seed, i), wider))
                totals[site] += float(answers.moved_by(output).sum())
        network.clean(few)
        found = {}
        for site, (seed, wider) in sites.items():
            ends, count = _readers(network, site), min(len(parts), self.masks)
            masked = [_error(network, self._masked(network, site, (seed, i), wider), ends) for i in range(count)]
            error = float(np.mean(masked))
            found[site] = quotient(totals[site], scale) / error if error > 0 else 0.0
        network.forget()
        return found

    def _masked(
        self, network: Resumed, site: Site, seed: tuple[int, int], wider: float
    ) -> dict[fx.Node, Callable[..., Any]]:
        """Return the call that rounds masked values at a site, for all its readers or for its operator alone."""
        ((node, rounds),) = network.switched_on([site]).items()
        chance = np.random.default_rng(seed)

        def call(x: Tensor, *args: Any) -> Tensor:
            drawn = torch.from_numpy(chance.random(tuple(x.shape), dtype=np.float32) < self.share)
            rounded = rounds(x, *args) if wider == 1 else _rounded_wider(x, *args, wider=wider)
            return torch.where(drawn, rounded, x)

        return {node: call}


def _anchor(site: Site, bits: Mapping[str, Mapping[Site, float]]) -> tuple[str, float]:
    """Return the precision that is finest at a site, and by what factor wider steps a mask takes there.

    A quarter of the bits between the finest and the coarsest precision: errors near the fine end rank both ends.
    """
    if any(site not in rounded for rounded in bits.values()):
        raise BadInput(f"the site '{site}' in a group", "a site that the recipe rounds", "group its rounds")
    here = {name: rounded[site] for name, rounded in bits.items()}
    finest = max(here, key=lambda name: here[name])
    between = (here[finest] - min(here.values())) / 4
    return finest, 2**between if math.isfinite(between) else 1.0


def _rounded_wider(
    x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int, *, wider: float
) -> Tensor:
    """Return `x` on steps that are `wider` times those of a grid, within the range of that grid."""
    step, zero = shaped(scale, x, axis), shaped(zero_point, x, axis)
    rounded = (x / (wider * step)).round() * (wider * step)
    return torch.minimum(torch.maximum(rounded, (low - zero) * step), (high - zero) * step)


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
