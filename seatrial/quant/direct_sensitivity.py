"""How much the rounds of one group of sites move a network's answers, asked by running them alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seatrial.core.graph import Graph
from seatrial.core.predictor import Inputs
from seatrial.core.recipe import Recipe
from seatrial.core.sites import Site
from seatrial.errors import BadInput
from seatrial.quant.resumed import KEPT_BYTES, Resumed, in_parts

Groups = Mapping[str, Mapping[str, frozenset[Site]]]
"""The sites of each group in the recipe of each precision: group -> precision -> sites."""


@dataclass(frozen=True)
class Sensitivity:
    """What one group costs in one precision: the mean of KL(float || rounded), in nats."""

    group: str
    precision: str
    kl: float


def ranked(measured: Mapping[tuple[str, str], float]) -> list[Sensitivity]:
    """Return what `direct` or `MaskGuided` found as a list, the most sensitive first."""
    found = [Sensitivity(group, precision, kl) for (group, precision), kl in measured.items()]
    return sorted(found, key=lambda one: -one.kl)


def direct(
    graph: Graph, recipes: Mapping[str, Recipe], groups: Groups, batch: Inputs, *, memory_bytes: int = KEPT_BYTES
) -> dict[tuple[str, str], float]:
    """Return, for each group and precision, KL(softmax(f) || softmax(f with the rounds of this group alone)) in nats.

    The mean over samples, for logits of tokens also over positions (those that an `attention_mask` shows). For outputs
    other than [batch, classes] and [batch, length, classes] of token inputs it is not a divergence but the relative
    squared error sum((y - y0)^2) / sum(y0^2). f is `graph` itself; edits of a recipe other than rounds stay, but for
    bias corrections, which were planned for the errors of all groups together. Of a batch whose values exceed
    `memory_bytes` one part after the other is run. Raises BadInput where a group names a precision without a recipe or
    a site that its recipe does not round, for an empty batch and for outputs that are not finite.

    Source: the metric of Huang et al. 2023 (OHQ), and of mixed-precision searches before it: one group at a time.
    """
    check(recipes, groups)
    networks = {precision: Resumed(graph, recipe) for precision, recipe in recipes.items()}
    totals = {(group, precision): 0.0 for group, by_precision in groups.items() for precision in by_precision}
    scale = 0.0
    for tensors in in_parts(graph, batch, memory_bytes=memory_bytes):
        answers = Answers.of(graph, tensors)
        scale += answers.scale
        for precision, network in networks.items():
            network.clean(tensors)
            for group in groups:
                if precision in groups[group]:
                    output = network.run_on(network.switched_on(groups[group][precision]))
                    totals[group, precision] += float(answers.moved_by(output).sum())
            network.forget()
    return {key: quotient(total, scale) for key, total in totals.items()}


@dataclass(frozen=True, eq=False)
class Answers:
    """The outputs of the float network, against which others are held."""

    reference: Tensor
    """float64: log-probabilities, or the output itself."""
    weights: Tensor | None
    """How often each row of log-probabilities counts; None where the outputs are no logits."""

    @staticmethod
    def of(graph: Graph, tensors: Sequence[Tensor]) -> Answers:
        """Run `graph` on its inputs; raises BadInput where the output is not finite."""
        with torch.no_grad():
            output = graph.module(*tensors).double()
        if not bool(output.isfinite().all()):
            raise BadInput("a network whose output is not finite", "finite outputs", "check the inputs and weights")
        tokens = all(spec.dtype in ("int64", "int32", "bool") for spec in graph.inputs)
        if output.shape[-1] < 2 or not (output.ndim == 2 or (output.ndim == 3 and tokens)):
            return Answers(output, None)
        masks = [row for spec, row in zip(graph.inputs, tensors, strict=True) if spec.name == "attention_mask"]
        shown = output.shape[:-1]
        weights = masks[0].double() if masks and masks[0].shape == shown else torch.ones(shown, dtype=torch.float64)
        return Answers(output.log_softmax(-1), weights)

    @property
    def scale(self) -> float:
        """What sums of `moved_by` are divided by: rows of log-probabilities, or sum(y0^2)."""
        return float((self.reference.square() if self.weights is None else self.weights).sum())

    def moved_by(self, output: Tensor) -> Tensor:
        """Return the divergence of each sample summed over its positions, or its squared error; float64 [batch]."""
        new = output.double()
        if self.weights is None:
            return (new - self.reference).square().flatten(1).sum(1)
        rows = (self.reference.exp() * (self.reference - new.log_softmax(-1))).sum(-1)
        return (rows * self.weights).reshape(len(rows), -1).sum(1)


def quotient(total: float, scale: float) -> float:
    """Return total / scale, not below zero as the rounding of floats may leave it; infinity for what is not finite."""
    if not math.isfinite(total):
        return math.inf
    return max(0.0, total / scale) if scale > 0 else 0.0


def check(recipes: Mapping[str, Recipe], groups: Groups) -> None:
    """Raise BadInput where a group names a precision for which there is no recipe."""
    for group, by_precision in groups.items():
        for precision in by_precision:
            if precision not in recipes:
                known = ", ".join(recipes) or "none"
                raise BadInput(f"precision '{precision}' of group '{group}'", f"one with a recipe: {known}", "plan it")
