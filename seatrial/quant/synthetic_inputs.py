"""Inputs for networks that come without data: Gaussian noise, and pictures distilled from batch-norm statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from seatrial.core.constants import parameter_at
from seatrial.core.graph import Graph, Normalization, TensorSpec
from seatrial.core.predictor import Inputs
from seatrial.core.sites import attribute, op_name
from seatrial.errors import BadInput

UNKNOWN = Normalization((0.45,) * 3, (0.225,) * 3)
"""Mean and deviation of natural pictures, for graphs whose first nodes do not tell them."""


def gaussian(graph: Graph, count: int, *, rng: np.random.Generator, length: int = 32) -> Inputs:
    """Return `count` random inputs: pictures float32 NCHW in [0, 1], or tokens of `length` by name of the input.

    Pictures are clip(mean + std z, 0, 1) with z from N(0, 1) and the constants of the graph's normalization. Token ids
    are uniform over the rows of the embedding that reads them, masks are all ones, positions count up, token
    types are zero. Raises BadInput for a count below 1 or other than a fixed batch size, and for token ids that no
    embedding reads.
    """
    _check_count(graph, count)
    if _is_picture(graph):
        height, width = graph.input_size_px
        noise = rng.standard_normal((count, 3, height, width), dtype=np.float32)
        mean, std = _constants(graph)
        return (mean + std * torch.from_numpy(noise)).clamp(0, 1)
    holders = [node for node in graph.nodes() if node.op == "placeholder"]
    drawn: dict[str, Tensor] = {}
    for spec, holder in zip(graph.inputs, holders, strict=True):
        sizes = [count, *(length if isinstance(dim, str) else dim for dim in spec.shape[1:])]
        drawn[spec.name] = _tensor(graph, spec, holder, sizes, rng)
    return drawn if len(drawn) > 1 or "int" in graph.inputs[0].dtype else next(iter(drawn.values()))


def distilled(graph: Graph, count: int, *, rng: np.random.Generator, steps: int = 200, rate: float = 0.1) -> Tensor:
    """Return `count` pictures, float32 NCHW in [0, 1], at whose batch norms the running statistics appear.

    Adam with learning rate `rate` takes `steps` steps from `gaussian` pictures, on normalized values that are kept
    within those of real pictures, to reduce the squared distance of the mean and of the standard deviation of each
    channel that a batch norm reads, averaged over channels and summed over batch norms. Raises BadInput for a count or
    steps below 1, for graphs that do not read pictures, and for those without a batch norm: one that was folded is
    gone, so pass the graph as it was captured.

    Source: Cai et al. 2020 (ZeroQ), eq. 1 and 2. Departures: the input's own mean and deviation are not held to 0
    and 1, since it starts there and cannot leave [0, 1].
    """
    if steps < 1:
        raise BadInput(f"{steps} steps", "at least 1", "correct it, or take Gaussian inputs")
    norms = [
        node
        for node in graph.nodes()
        if op_name(node) == "batch_norm" and parameter_at(graph.module, node, 4) is not None
    ]
    start = gaussian(graph, count, rng=rng) if _is_picture(graph) else None
    if start is None or not isinstance(start, Tensor):
        raise BadInput(f"a graph with inputs {graph.inputs}", "one picture input [batch, 3, H, W]", "use gaussian")
    if not norms:
        raise BadInput("a graph without batch norms", "running statistics to match", "pass it unfolded or use gaussian")
    mean, std = _constants(graph)
    low, high = (0 - mean) / std, (1 - mean) / std
    normalized = ((start - mean) / std).requires_grad_()
    optimizer = torch.optim.Adam([normalized], lr=rate)
    for _ in range(steps):
        runner = _Statistics(graph, norms)
        with torch.enable_grad():
            runner.run(mean + std * normalized)
            (normalized.grad,) = torch.autograd.grad(runner.loss, [normalized])
        optimizer.step()
        with torch.no_grad():
            normalized.copy_(normalized.clamp(low, high))
    return (mean + std * normalized.detach()).clamp(0, 1)


class _Statistics(fx.Interpreter):
    """Runs a graph and sums up how far the inputs of its batch norms are from the running statistics."""

    def __init__(self, graph: Graph, norms: list[fx.Node]) -> None:
        super().__init__(graph.module, garbage_collect_values=True)
        self.norms, self.loss = set(norms), torch.zeros(())

    def run_node(self, n: fx.Node) -> Any:
        if n in self.norms:
            value: Tensor = self.env[n.args[0]]  # pyright: ignore[reportArgumentType]
            assert isinstance(self.module, fx.GraphModule)
            mean, variance = (parameter_at(self.module, n, index) for index in (3, 4))
            assert mean is not None
            assert variance is not None
            dims = [0, *range(2, value.ndim)]
            eps = float(n.args[7])  # pyright: ignore[reportArgumentType]
            seen = torch.sqrt(value.var(dims, correction=0) + eps)
            distance = (value.mean(dims) - mean).square() + (seen - torch.sqrt(variance + eps)).square()
            self.loss = self.loss + distance.mean()
        return super().run_node(n)


def _check_count(graph: Graph, count: int) -> None:
    batch = graph.inputs[0].shape[0]
    if count < 1 or (isinstance(batch, int) and batch != count):
        wanted = f"exactly {batch}, its batch size" if isinstance(batch, int) else "at least 1"
        raise BadInput(f"{count} synthetic inputs", wanted, "correct the count")


def _is_picture(graph: Graph) -> bool:
    shape = graph.inputs[0].shape
    sizes = all(isinstance(dim, int) for dim in shape[1:])
    return len(graph.inputs) == 1 and len(shape) == 4 and shape[1] == 3 and sizes and "float" in graph.inputs[0].dtype


def _constants(graph: Graph) -> tuple[Tensor, Tensor]:
    """Return mean and deviation, [1, 3, 1, 1], as the first nodes of a graph subtract and divide."""
    found: list[Tensor] = []
    node = next(node for node in graph.nodes() if node.op == "placeholder")
    for kind in ("sub", "div"):
        readers = [user for user in node.users if op_name(user) == kind and user.args[0] is node]
        value = parameter_at(graph.module, readers[0], 1) if len(readers) == len(node.users) == 1 else None
        if value is None or value.numel() not in (1, 3):
            return tuple(torch.tensor(part).reshape(1, 3, 1, 1) for part in (UNKNOWN.mean, UNKNOWN.std))  # pyright: ignore[reportReturnType]
        found.append(value.float().expand(3) if value.numel() == 1 else value.float().flatten())
        node = readers[0]
    return found[0].reshape(1, 3, 1, 1), found[1].reshape(1, 3, 1, 1)


def _tensor(graph: Graph, spec: TensorSpec, holder: fx.Node, sizes: list[int], rng: np.random.Generator) -> Tensor:
    dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.from_numpy(rng.standard_normal(sizes)).to(dtype)
    if "mask" in spec.name:
        return torch.ones(sizes, dtype=dtype)
    if "position" in spec.name:
        return torch.arange(sizes[-1]).expand(sizes).to(dtype).clone()
    if "type" in spec.name:
        return torch.zeros(sizes, dtype=dtype)
    tables = [user.args[0] for user in holder.users if op_name(user) == "embedding" and user.args[1] is holder]
    rows = [len(attribute(graph.module, str(table.target))) for table in tables if isinstance(table, fx.Node)]
    if not rows:
        raise BadInput(f"the input '{spec.name}'", "token ids that an embedding reads", "pass real inputs")
    return torch.from_numpy(rng.integers(min(rows), size=sizes)).to(dtype)
