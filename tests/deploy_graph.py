"""A small network with everything that deployment must get right, and rounds inserted by hand."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from seatrial.core import qdq  # noqa: F401  registers the operator
from seatrial.core.graph import Graph, Normalization, capture, copied, finished
from seatrial.core.sites import op_name

ROUNDED = ("relu", "add", "mean", "conv2d", "div", "linear")


class Residual(nn.Module):
    """Two convolutions with equal biases, a residual add, pooling by mean, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        nn.init.constant_(self.first.bias, 0.1)  # pyright: ignore[reportArgumentType]
        nn.init.constant_(self.second.bias, 0.1)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        low = self.first(x).relu()
        return self.head((self.second(low) + low).relu().mean((2, 3)))


def float_graph() -> Graph:
    """Return the captured network with seeded weights; 3x12x12 pictures, 5 classes."""
    torch.manual_seed(0)
    normalization = Normalization((0.5, 0.4, 0.5), (0.2, 0.2, 0.3))
    return capture(Residual(), torch.rand(2, 3, 12, 12), normalization=normalization)


class _Values(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Tensor:
        self.seen[n.name] = super().run_node(n)
        return self.seen[n.name]


def quantized(
    graph: Graph,
    x: Tensor,
    *,
    weights: int = 8,
    activations: int = 8,
    activation_axis: int | None = None,
    float_weights: tuple[str, ...] = (),
    rounded: tuple[str, ...] = ROUNDED,
) -> Graph:
    """Return a copy with min-max rounds on weights (per channel, symmetric) and activations (unsigned, affine).

    Weights whose name contains one of `float_weights` stay float.
    """
    graph = copied(graph)
    values = _Values(graph.module)
    with torch.no_grad():
        values.run(x)
    for node in list(graph.module.graph.nodes):
        value, users = values.seen.get(node.name), [op_name(user) for user in node.users]
        if node.op == "get_attr" and str(node.target).endswith("weight"):
            if not any(part in str(node.target) for part in float_weights):
                top = 2 ** (weights - 1) - 1
                scale = value.abs().flatten(1).amax(1) / top
                _insert(graph, node, scale, torch.zeros(len(scale)), -top, top, 0)
        elif node.op == "call_function" and op_name(node) in rounded and not {"relu", "output"} & set(users):
            top = 2**activations - 1
            wide = value if activation_axis is None else value.transpose(0, activation_axis).flatten(1).T
            dims = () if activation_axis is None else 0
            low, high = (wide.amin(dims).clamp(max=0), wide.amax(dims).clamp(min=0))
            scale = ((high - low) / top).clamp(min=1e-6)
            axis = -1 if activation_axis is None else activation_axis
            _insert(graph, node, scale, (-low / scale).round(), 0, top, axis)
    return finished(graph)


def _insert(graph: Graph, node: fx.Node, scale: Tensor, zero: Tensor, low: int, high: int, axis: int) -> None:
    module, users = graph.module, list(node.users)
    module.register_buffer(f"scale_{node.name}", scale.float())
    module.register_buffer(f"zero_{node.name}", zero.to(torch.int64))
    with module.graph.inserting_after(node):
        zero_node = module.graph.get_attr(f"zero_{node.name}")
        scale_node = module.graph.get_attr(f"scale_{node.name}")
    with module.graph.inserting_after(zero_node):
        arguments = (node, scale_node, zero_node, low, high, axis)
        rounded = module.graph.call_function(torch.ops.seatrial.qdq.default, arguments)
    for user in users:
        user.replace_input_with(node, rounded)
