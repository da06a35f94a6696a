"""A captured graph that learns: parameters of its own, and batch norms that know how they train."""

from __future__ import annotations

from typing import Literal, final

import torch.nn.functional as F
from torch import Tensor, fx, nn

from seatrial.core.graph import Graph, copied, finished
from seatrial.core.sites import attribute, op_name

Norms = Literal["live", "frozen", "batch"]
"""How batch norms normalize: `live` by the batch in training and by running statistics otherwise, as ever; `frozen` by
the running statistics, which stay; `batch` always by the batch, without keeping statistics."""
_WEIGHTED = {"conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear"}
_DEFAULT_MOMENTUM = 0.1
EAGER_PREFIX = "inner."
"""What a capture puts in front of the names of an eager module's parameters."""


@final
class _BatchNorm(nn.Module):
    """A batch norm whose parameters and statistics come as arguments, so that they keep their names in the graph."""

    def __init__(self, norms: Norms, momentum: float, eps: float) -> None:
        super().__init__()
        self.norms, self.eps = norms, eps
        # A momentum of None is captured as 0 in eval mode; statistics would never move.
        self.momentum = momentum if momentum > 0 else _DEFAULT_MOMENTUM

    def forward(self, x: Tensor, gain: Tensor | None, offset: Tensor | None, mean: Tensor, variance: Tensor) -> Tensor:
        # One value a channel has no variance: such a batch is normalized as in evaluation.
        several = x.numel() > x.shape[1]
        if self.norms == "batch" and several:
            return F.batch_norm(x, None, None, gain, offset, True, 0.0, self.eps)
        learns = self.training and self.norms == "live" and several
        return F.batch_norm(x, mean, variance, gain, offset, learns, self.momentum, self.eps)


def trainable(graph: Graph, *, norms: Norms = "live") -> fx.GraphModule:
    """Return a module in eval mode that computes what `graph` does, with its own parameters, which ask for gradients.

    Parameters of the graph learn, and so do constants that convolutions and linear operators read as weight or bias.
    Batch norms with fixed statistics become modules that follow `norms` and the mode of the whole. The graph is
    unchanged; names of parameters and of nodes stay.

    Departures: the capture has removed dropout and stochastic depth, so a network trains without them.
    """
    module = copied(graph).module
    learning = _read_as_weights(module)
    own: dict[int, Tensor] = {}
    for target in dict.fromkeys(str(node.target) for node in module.graph.nodes if node.op == "get_attr"):
        value = attribute(module, target)
        if id(value) not in own:
            learns = value.is_floating_point() and (isinstance(value, nn.Parameter) or target in learning)
            clone = value.detach().clone()
            own[id(value)] = nn.Parameter(clone) if learns else clone
        _assign(module, target, own[id(value)])
    for i, node in enumerate(list(module.graph.nodes)):
        if op_name(node) == "batch_norm" and node.args[5] is False and isinstance(node.args[3], fx.Node):
            _exchange(module, node, norms, f"batch_norm{i}")
    return fx.GraphModule(module, module.graph).eval()


def trained(graph: Graph, module: fx.GraphModule) -> Graph:
    """Return `graph` with the parameters and statistics that `module`, made of it by `trainable`, has now."""
    new = copied(graph)
    for target in dict.fromkeys(str(node.target) for node in new.nodes() if node.op == "get_attr"):
        value = attribute(module, target).detach().clone()
        was = attribute(graph.module, target)
        _assign(
            new.module, target, nn.Parameter(value, requires_grad=False) if isinstance(was, nn.Parameter) else value
        )
    return finished(new)


def eager_state(graph: Graph) -> dict[str, Tensor]:
    """Return parameters and buffers of a graph under the names that the captured module gave them."""
    targets = dict.fromkeys(str(node.target) for node in graph.nodes() if node.op == "get_attr")
    named = {target: attribute(graph.module, target).detach() for target in targets}
    inner = {target for target in named if target.startswith(EAGER_PREFIX)}
    return {target.removeprefix(EAGER_PREFIX): value for target, value in named.items() if target in inner or not inner}


def _read_as_weights(module: fx.GraphModule) -> set[str]:
    found = set()
    for node in module.graph.nodes:
        if op_name(node) in _WEIGHTED:
            read = [value for value in node.args[1:3] if isinstance(value, fx.Node) and value.op == "get_attr"]
            found |= {str(value.target) for value in read}
    return found


def _assign(module: nn.Module, target: str, value: Tensor) -> None:
    path, _, name = target.rpartition(".")
    owner = module.get_submodule(path)
    owner._parameters.pop(name, None)
    owner._buffers.pop(name, None)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(name, value)
    else:
        owner.register_buffer(name, value)


def _exchange(module: fx.GraphModule, node: fx.Node, norms: Norms, name: str) -> None:
    momentum, eps = node.args[6], node.args[7]
    assert isinstance(momentum, float)
    assert isinstance(eps, float)
    module.add_submodule(name, _BatchNorm(norms, momentum, eps))
    # In place, so that the node keeps its name.
    node.op, node.target, node.args = "call_module", name, node.args[:5]
