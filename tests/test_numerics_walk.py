"""Walks and segments: what plain execution gives, whatever is asked on the way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seatrial.core.graph import Graph, capture
from seatrial.core.sites import op_name, operators
from seatrial.numerics.observe import watch
from seatrial.numerics.walk import Segment, Walk


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.table = nn.Linear(6, 6), nn.Linear(6, 6), nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        late = (self.table * 2).exp()  # computed behind `a`, not from it
        return (self.b(y.relu()) + late).sigmoid() + y


def graph() -> Graph:
    torch.manual_seed(0)
    return capture(Branches(), torch.rand(2, 6))


BATCHES = [(torch.rand(3, 6, generator=torch.Generator().manual_seed(n)),) for n in range(2)]


def plain(g: Graph) -> dict[str, list[Tensor]]:
    seen: dict[str, list[Tensor]] = {name: [] for name in operators(g)}
    watch(g, [batch[0] for batch in BATCHES], {node: seen[name].append for name, node in operators(g).items()})
    return seen


def test_a_walk_gives_the_values_of_plain_execution_and_frees_them() -> None:
    g = graph()
    walk, wanted = Walk(g, BATCHES), plain(g)
    names = {node: name for name, node in operators(g).items()}
    most = 0
    for node in walk:
        for value, expected in zip(walk.values(node), wanted[names[node]], strict=True):
            torch.testing.assert_close(value, expected)
        most = max(most, len(walk._held))
    assert most < len(names)


def test_a_value_further_on_is_there_on_demand_and_is_not_computed_again() -> None:
    g = graph()
    wanted = plain(g)
    names = {node: name for name, node in operators(g).items()}
    walk = Walk(g, BATCHES)
    late = next(node for node in names if op_name(node) == "exp")
    asked = []
    for node in walk:
        if names[node] == "a/linear#0" or node is late:
            asked.append(walk.values(late))
    torch.testing.assert_close(asked[0][0], wanted[names[late]][0])
    assert asked[0] is asked[1]


def test_what_was_put_is_what_readers_get() -> None:
    g = graph()
    walk, last = Walk(g, BATCHES), None
    for node in walk:
        if op_name(node) == "linear":
            walk.put(node, [torch.zeros(3, 6), torch.ones(3, 6)])
        last = [value.clone() for value in walk.values(node)]
    late = (2 * g.module.state_dict()[next(n for n in g.module.state_dict() if n.endswith("table"))]).exp()
    assert last is not None
    torch.testing.assert_close(last[0], late.sigmoid().expand(3, 6))
    torch.testing.assert_close(last[1], (1 + late).sigmoid().expand(3, 6) + 1)


def test_a_segment_is_the_function_between_its_ends() -> None:
    g = graph()
    named, wanted = operators(g), plain(g)
    nodes = list(named.values())
    start, target = named["a/linear#0"], nodes[-1]
    segment = Segment([start], [target])
    assert [op_name(node) for node in segment.boundary if node.op != "get_attr"] == ["exp"]
    walk = Walk(g, BATCHES)
    boundary = {read: walk.values(read)[0] for read in segment.boundary}
    (found,) = segment([wanted["a/linear#0"][0]], boundary)
    torch.testing.assert_close(found, wanted[next(name for name, node in named.items() if node is target)][0])


def test_a_segment_runs_for_many_starts_at_once() -> None:
    g = graph()
    named = operators(g)
    start, target = named["a/linear#0"], list(named.values())[-1]
    segment = Segment([start], [target])
    walk = Walk(g, BATCHES)
    boundary = {read: walk.values(read)[0] for read in segment.boundary}
    starts = torch.rand(5, 3, 6, generator=torch.Generator().manual_seed(9))
    together = torch.vmap(lambda x: segment([x], boundary)[0])(starts)
    for one, value in zip(starts, together, strict=True):
        torch.testing.assert_close(segment([one], boundary)[0], value)
