"""TENT: at test time, the affine parameters of norms move so that answers become more certain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from seatrial.core.graph import Graph
from seatrial.core.predictor import Gift, Inputs, Predictor
from seatrial.core.sites import attribute, op_name
from seatrial.errors import BadInput
from seatrial.train.trainable import trainable

_NORMS = {"batch_norm": (1, 2), "layer_norm": (2, 3), "group_norm": (2, 3)}
"""Where a norm's gain and offset stand among its arguments."""


@final
@dataclass(frozen=True, kw_only=True)
class Tent:
    """Test-time entropy minimization (Wang et al. 2021, TENT, arXiv 2006.10726, section 3).

    Batch norms take the statistics of the test batch; their gains and offsets, and those of layer and group norms, take
    `steps` steps of Adam at `rate` down the mean entropy of a batch's answers. `episodic` begins each batch anew from
    the weights that were given; else what was learned stays for the next batch, as in the paper's online setting, and
    answers depend on the order of batches. Raises BadInput for options out of range.
    Departures: episodic by default, so that equal inputs get equal answers; answers are then those behind the last
    step, which would have no effect otherwise, and online those before it, as in the paper.
    """

    rate: float = 1e-3
    steps: int = 1
    episodic: bool = True

    def __post_init__(self) -> None:
        if not self.rate > 0 or self.steps < 1:
            raise BadInput(
                f"rate {self.rate}, {self.steps} steps", "a rate above 0 and at least 1 step", "correct them"
            )

    def adapting(self, graph: Graph) -> TentPredictor:
        """Return a predictor that adapts a copy of `graph`; raises BadInput for a graph without norms to adapt.

        Norms must not be folded into the weights before them.
        """
        learning = _affine(graph)
        if not learning:
            raise BadInput("a network without norms that have gains", "batch, layer or group norms", "leave TENT out")
        module = trainable(graph, norms="batch")
        for value in module.parameters():
            value.requires_grad_(False)
        parameters = [attribute(module, target).requires_grad_(True) for target in learning]
        return TentPredictor(self, module, parameters)


def entropy(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """Return the Shannon entropy of each row's softmax, in nats."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


@final
@dataclass(eq=False)
class TentPredictor(Predictor):
    """Answers and adapts; see `Tent`. A batch's answers depend on all of its pictures."""

    options: Tent
    module: fx.GraphModule
    parameters: list[Tensor]
    _start: list[Tensor] = field(init=False, repr=False)
    _optimizer: torch.optim.Optimizer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._start = [value.detach().clone() for value in self.parameters]
        self.reset()

    @property
    def gives(self) -> frozenset[Gift]:
        """Logits and labels: gradients through the adaptation are not given."""
        return frozenset({"logits", "labels"})

    def reset(self) -> None:
        """Forget all that was learned."""
        with torch.no_grad():
            for value, was in zip(self.parameters, self._start, strict=True):
                value.copy_(was)
        self._optimizer = torch.optim.Adam(self.parameters, lr=self.options.rate, betas=(0.9, 0.999))

    def __call__(self, inputs: Inputs) -> Tensor:
        """Return the logits [batch, classes] of one batch, adapting to it."""
        if not isinstance(inputs, Tensor):
            raise BadInput("named inputs", "a picture batch", "TENT is for image classifiers")
        if self.options.episodic:
            self.reset()
        shown, outputs = inputs.detach(), torch.empty(0)
        for _ in range(self.options.steps):
            with torch.enable_grad():
                outputs = self.module(shown)
                self._optimizer.zero_grad()
                entropy(outputs).mean().backward()
            self._optimizer.step()
        if self.options.episodic:
            with torch.no_grad():
                outputs = self.module(shown)
            self.reset()
        return outputs.detach()


def _affine(graph: Graph) -> list[str]:
    """Return the names of the gains and offsets of all norms."""
    found: dict[str, None] = {}
    for node in graph.nodes():
        for index in _NORMS.get(op_name(node), ()):
            value = node.args[index] if len(node.args) > index else None
            if isinstance(value, fx.Node) and value.op == "get_attr":
                parameter = attribute(graph.module, str(value.target))
                if isinstance(parameter, nn.Parameter):
                    found[str(value.target)] = None
    return list(found)
