"""All batches in step: the same values as one batch after the other, and a change reaches what follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from seatrial.core.graph import Graph, capture
from seatrial.core.sites import op_name
from seatrial.numerics.in_step import peak_bytes, run_in_step
from seatrial.numerics.observe import watch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        left, right = (self.b(x) + x).split(2, 1)
        return self.head(torch.cat([right, left], 1).mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(Net(), torch.rand(2, 3, 8, 8))


def batches() -> list[Tensor]:
    return [torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in (5, 5, 3)]


def last(graph: Graph) -> fx.Node:
    return graph.nodes()[-1].args[0]  # pyright: ignore[reportReturnType]


def test_in_step_gives_the_values_of_one_batch_after_the_other(graph: Graph) -> None:
    made: dict[fx.Node, list[Any]] = {}

    def keep(node: fx.Node, values: list[Any]) -> list[Any]:
        made[node] = values
        return values

    run_in_step(graph, batches(), keep)
    wanted = [graph.module(batch) for batch in batches()]
    assert all(torch.equal(one, other) for one, other in zip(made[last(graph)], wanted, strict=True))
    seen: dict[fx.Node, list[Tensor]] = {node: [] for node in made if isinstance(made[node][0], Tensor)}
    watch(graph, batches(), {node: seen[node].append for node in seen})
    for node, tensors in seen.items():
        assert all(torch.equal(one, other) for one, other in zip(tensors, made[node], strict=True))


def test_a_change_reaches_what_follows(graph: Graph) -> None:
    outputs: list[Any] = []

    def change(node: fx.Node, values: list[Any]) -> list[Any]:
        if node is last(graph):
            outputs.extend(values)
        return [value * 0 for value in values] if op_name(node) == "relu" else values

    run_in_step(graph, batches(), change)
    bias = graph.module.state_dict()
    assert bias  # the parameters stay where they are
    assert all(torch.equal(value, outputs[0][:1].expand_as(value)) for value in outputs)


def test_the_peak_is_what_a_sample_holds_at_once_times_the_batch(graph: Graph) -> None:
    # At the addition: the branch, what it came from, and the sum, 4 x 8 x 8 floats each.
    assert peak_bytes(graph, batches()[0]) == 5 * 3 * 4 * 8 * 8 * 4
