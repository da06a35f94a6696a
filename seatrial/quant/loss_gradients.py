"""How much each value inside a network moves its loss: gradients at operators, held in a file and not in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn.functional import cross_entropy

from seatrial.core.graph import Graph
from seatrial.core.sites import attribute, shape_of
from seatrial.errors import BadInput


@contextmanager
def loss_gradients(
    graph: Graph, batch: tuple[Tensor, ...], nodes: Sequence[fx.Node], *, chunk: int = 8
) -> Iterator[Mapping[fx.Node, Tensor]]:
    """Give the gradient of a label-free loss with respect to the value of each node, for every sample by itself.

    The loss is the sum over samples of the cross entropy of the first output, logits [batch, classes], against its own
    argmax: since samples do not meet, row i is the gradient of sample i's loss. (A divergence from the network's own
    prediction would do for a label too, but has no gradient where the prediction is that very one.) A gradient has the
    shape of its value and is float32; a node that the loss does not depend on has zeros. `nodes` belong to
    `graph.nodes()`.

    The samples run `chunk` at a time (all at once where the graph was captured with a fixed batch), and the gradients
    lie in a temporary memory map that is deleted when the context ends: copy what should outlive it. Parameters get no
    gradients. Raises BadInput for another output than logits of at least two classes, for a batch that gives logits
    which are not finite, and for nodes whose value holds no real numbers or does not grow with the batch.

    Source: Yuan et al. 2022 (PTQ4ViT), section 3.3, takes these gradients for a Hessian-guided metric.
    Departures: its loss is the divergence from the float network's prediction, whose gradient is zero at that network.
    """
    wanted = list(dict.fromkeys(nodes))
    if chunk < 1:
        raise BadInput(f"chunks of {chunk} samples", "at least one", "leave the chunk out")
    count, dynamic = len(batch[0]), isinstance(graph.inputs[0].shape[0], str)
    axes = {node: _batch_axis(graph, node) if dynamic else 0 for node in wanted}
    step = min(chunk, count) if dynamic else count
    if step < count:
        _check_order(graph, batch, {node: axis for node, axis in axes.items() if _merged(graph, node, axis)})
    with TemporaryDirectory(prefix="seatrial-") as folder:
        held = _Files(Path(folder))
        for start in range(0, count, step):
            part = tuple(tensor[start : start + step] for tensor in batch)
            for node, gradient in _gradients(graph, part, wanted).items():
                held.put(node, gradient, axes[node], start, len(part[0]), count)
        yield held


def gives_logits(graph: Graph) -> bool:
    """Tell whether the first output of a graph is a matrix, as logits [batch, classes] are."""
    (output,) = [node for node in graph.nodes() if node.op == "output"]
    first = output.args[0]
    while isinstance(first, list | tuple) and first:
        first = first[0]
    return isinstance(first, fx.Node) and len(shape_of(first)) == 2


class _Files(Mapping[fx.Node, Tensor]):
    """A file for each node, in memory only while somebody holds the tensor that was asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shapes: dict[fx.Node, Sequence[int]] = {}

    def put(self, node: fx.Node, gradient: Tensor, axis: int, start: int, samples: int, count: int) -> None:
        """Keep the gradient of `samples` samples, which begin at `start` of `count` along an axis."""
        shape = list(gradient.shape)
        shape[axis] = gradient.shape[axis] * count // samples
        if node not in self._shapes:
            self._shapes[node] = shape
            self._file(node).touch()
            os.truncate(self._file(node), 4 * math.prod(shape))
        self[node].narrow(axis, start * shape[axis] // count, gradient.shape[axis]).copy_(gradient)

    def __getitem__(self, node: fx.Node) -> Tensor:
        shape = self._shapes[node]
        if 0 in shape:  # nothing to map
            return torch.zeros(*shape)
        return torch.from_numpy(np.memmap(self._file(node), np.float32, "r+", shape=tuple(shape)))

    def __iter__(self) -> Iterator[fx.Node]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def _file(self, node: fx.Node) -> Path:
        return self._folder / f"{node.name}.gradient"


class _Differentiable(fx.Interpreter):
    """Runs a graph so that chosen values can be differentiated by, and frees what nobody reads any more."""

    def __init__(self, graph: Graph, wanted: Sequence[fx.Node]) -> None:
        super().__init__(graph.module, garbage_collect_values=True)
        self.extra_traceback = False  # errors are ours and told as they are
        self.wanted, self.reached = set(wanted), dict[fx.Node, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        # Parameters are constants here, so that nothing is remembered for them.
        value = attribute(self.module, str(n.target)).detach() if n.op == "get_attr" else super().run_node(n)  # pyright: ignore[reportArgumentType]
        if n not in self.wanted:
            return value
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise BadInput(f"a gradient at '{n.name}'", "an operator that gives real numbers", "leave it out")
        if not value.requires_grad:
            value = value.detach().requires_grad_()
        self.reached[n] = value
        return value


def _gradients(graph: Graph, batch: Sequence[Tensor], wanted: Sequence[fx.Node]) -> dict[fx.Node, Tensor]:
    runner = _Differentiable(graph, wanted)
    with torch.enable_grad():
        output = runner.run(*(tensor.detach() for tensor in batch))
        logits = output[0] if isinstance(output, list | tuple) else output
        _check_logits(logits, len(batch[0]))
        loss = cross_entropy(logits.double(), logits.detach().argmax(1), reduction="sum")
    values = [runner.reached[node] for node in wanted]
    found: Sequence[Tensor | None] = [None] * len(values)
    if loss.requires_grad and values:
        found = torch.autograd.grad(loss, values, allow_unused=True)
    return {
        node: torch.zeros_like(value, dtype=torch.float32) if gradient is None else gradient.float()
        for node, value, gradient in zip(wanted, values, found, strict=True)
    }


def _check_logits(logits: object, count: int) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        came = f"a network whose first output is {shape} for {count} samples"
        raise BadInput(came, "logits [batch, classes]", "choose a method that needs no classes")
    if not bool(logits.isfinite().all()):
        raise BadInput("logits that are not finite", "finite values on the calibration data", "check the data")


def _batch_axis(graph: Graph, node: fx.Node) -> int:
    """Return the axis of a value that grows with the batch; raises BadInput where none or several do."""
    batch = _symbols(graph)
    axes = [axis for axis, size in enumerate(shape_of(node)) if _symbols_of(size) & batch]
    if len(axes) != 1:
        raise BadInput(
            f"a gradient at '{node.name}' of shape {shape_of(node)}", "one axis with the samples", "leave it out"
        )
    return axes[0]


def _merged(graph: Graph, node: fx.Node, axis: int) -> bool:
    """Tell whether the axis of the samples holds something else too (windows, heads)."""
    return str(shape_of(node)[axis]) not in {str(symbol) for symbol in _symbols(graph)}


def _symbols(graph: Graph) -> set[object]:
    """Return the symbols of the batch; each input may have its own."""
    holders = [node for node in graph.nodes() if node.op == "placeholder"]
    return {symbol for node in holders for symbol in _symbols_of(shape_of(node)[0])}


def _symbols_of(size: object) -> set[object]:
    return set(size.node.expr.free_symbols) if isinstance(size, torch.SymInt) else set()


def _check_order(graph: Graph, batch: Sequence[Tensor], axes: Mapping[fx.Node, int]) -> None:
    """Refuse values in which the parts of a sample do not stand together: chunks could not be put side by side."""
    if not axes:
        return
    seen: list[dict[fx.Node, Tensor]] = []
    for rows in (slice(0, 2), slice(0, 1), slice(1, 2)):
        runner = _Differentiable(graph, list(axes))
        with torch.no_grad():
            runner.run(*(tensor[rows] for tensor in batch))
        seen.append({node: value.detach() for node, value in runner.reached.items()})
    for node, axis in axes.items():
        both, apart = seen[0][node], torch.cat([part[node] for part in seen[1:]], axis)
        if both.shape != apart.shape or not torch.allclose(both, apart, rtol=1e-3, atol=1e-3 * float(both.abs().max())):
            came = f"a gradient at '{node.name}', where samples are interleaved"
            raise BadInput(came, "a value with the samples one after another", "pass a chunk of the whole batch")
