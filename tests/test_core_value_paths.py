"""Values of an attention: where each channel goes, and that a migration of them leaves the function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from transformers_graphs import MODELS, answer, captured, inputs_of

from seatrial.core.graph import Graph, capture
from seatrial.core.predictor import Inputs
from seatrial.core.realise import realise
from seatrial.core.recipe import Migrate, Recipe
from seatrial.core.sites import op_name, operators, signature, site_of
from seatrial.core.value_paths import ValuePath, value_paths
from seatrial.errors import BadInput
from seatrial.numerics.observe import tensors_of

COUNTS = {"bert": 2, "opt": 2, "bloom": 2, "llama": 2, "vit": 2, "swin": 4}


def found_in(graph: Graph) -> list[tuple[str, str, ValuePath]]:
    """Producer, consumer and path of every attention of a graph."""
    names = {node: name for name, node in operators(graph).items()}
    linear = [node for node in names if op_name(node) == "linear"]
    return [(names[one], names[node], path) for one in linear for node, path in value_paths(one).items()]


class Nudged(fx.Interpreter):
    """Runs a graph with something added to the output of one operator, and keeps what another one reads first."""

    def __init__(self, graph: Graph, nudged: str, added: Tensor, read: str) -> None:
        super().__init__(graph.module)
        named = operators(graph)
        self.nudged, self.added, self.reader, self.read = named[nudged], added, named[read], torch.empty(0)

    def run_node(self, n: fx.Node) -> Any:
        if n is self.reader:
            self.read = self.env[n.args[0]]  # pyright: ignore[reportArgumentType]
        value = super().run_node(n)
        return value + self.added if n is self.nudged else value


def read_with(graph: Graph, inputs: Inputs, nudged: str, added: Tensor, read: str) -> Tensor:
    """What an operator reads first when something is added to the output of another one."""
    runner = Nudged(graph, nudged, added, read)
    with torch.no_grad():
        runner.run(*tensors_of(graph, inputs))
    return runner.read


@pytest.mark.parametrize("kind", MODELS)
def test_channels_go_where_a_nudge_shows(kind: str) -> None:
    """Oracle: add 1 to one channel of the producer; exactly the channels behind it grow by 1, for every token."""
    graph = captured(kind)
    found = found_in(graph)
    assert len(found) == COUNTS[kind]
    producer, consumer, path = found[-1]
    width = operators(graph)[producer].meta["val"].shape[-1]
    inputs = inputs_of(kind, 3)
    plain = read_with(graph, inputs, producer, torch.zeros(width), consumer)
    assert len(path.channels) == plain.shape[-1]
    for channel in sorted(set(path.channels))[:: max(1, width // 24)]:
        grown = read_with(graph, inputs, producer, torch.eye(width)[channel], consumer) - plain
        wanted = torch.tensor([float(one == channel) for one in path.channels])
        torch.testing.assert_close(grown, wanted.expand_as(grown), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_a_migration_of_values_leaves_the_function(kind: str) -> None:
    """In double precision: tests/test_quant_os_plus.py."""
    graph = captured(kind)
    rng = np.random.default_rng(0)
    edits = []
    for producer, consumer, path in found_in(graph):
        assert path.may_shift
        width, at = operators(graph)[producer].meta["val"].shape[-1], list(set(path.channels))
        scale, shift = torch.ones(width), torch.zeros(width)
        scale[at] = torch.from_numpy(rng.uniform(0.1, 9, len(at))).float()
        shift[at] = torch.from_numpy(rng.normal(0, 3, len(at))).float()
        edits.append(Migrate(site_of(producer, "output"), (site_of(consumer, "output"),), shift, scale))
    moved = realise(graph, Recipe(tuple(edits), signature(graph)))
    inputs = inputs_of(kind, 9)
    wanted = answer(graph, inputs)
    assert float((answer(moved, inputs) - wanted).norm() / wanted.norm()) < 1e-5
    # It is another network all the same: what the projection behind the attention reads has changed.
    producer, consumer, _ = found_in(graph)[0]
    read, then = (read_with(one, inputs, producer, torch.zeros(()), consumer) for one in (graph, moved))
    assert float((read - then).norm() / read.norm()) > 0.1


class Attention(nn.Module):
    """One head; `variant` says what is unusual about it."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.variant = variant
        self.q, self.k, self.v, self.out, self.other = (nn.Linear(8, 8) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.variant == "values are keys":
            k = v
        scores = q @ k.transpose(1, 2)
        weights = scores.relu() if self.variant == "no softmax" else scores.softmax(-1)
        if self.variant == "softmax over queries":
            weights = scores.softmax(1)
        if self.variant == "softmax in float32":
            weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
        if self.variant == "scaled weights":
            weights = weights * 2
        if self.variant == "activated values":
            v = v.relu()
        if self.variant == "values on the left":
            return self.out(v.transpose(1, 2) @ weights)
        mixed = weights @ v
        if self.variant == "attended twice":
            mixed = weights @ mixed
        if self.variant == "values are read too":
            return self.out(mixed) + v
        if self.variant == "two projections":
            return self.out(mixed) + self.other(mixed)
        return self.out(mixed)


def attention(variant: str) -> Graph:
    size = (2, 8, 8) if variant == "values on the left" else (2, 6, 8)
    return capture(Attention(variant), torch.rand(size))


@pytest.mark.parametrize(
    ("variant", "may_shift"),
    [
        ("usual", [True]),
        ("two projections", [True, True]),
        ("softmax in float32", [True]),
        ("no softmax", [False]),
        ("softmax over queries", [False]),
        ("scaled weights", [False]),
        ("values are keys", []),
        ("activated values", []),
        ("values on the left", []),
        ("attended twice", []),
        ("values are read too", []),
    ],
)
def test_what_is_no_path_is_none(variant: str, may_shift: list[bool]) -> None:
    graph = attention(variant)
    found = found_in(graph)
    assert [path.may_shift for _, _, path in found] == may_shift
    assert all(path.channels == tuple(range(8)) for _, _, path in found)
    assert {producer for producer, _, _ in found} <= {"v/linear#0"}
    if found:
        shift = torch.arange(8.0) * may_shift[0]
        sites = tuple(site_of(consumer, "output") for _, consumer, _ in found)
        edit = Migrate(site_of("v/linear#0", "output"), sites, shift, torch.arange(1.0, 9.0))
        moved = realise(graph, Recipe((edit,), signature(graph)))
        x = torch.rand(3, 6, 8)
        torch.testing.assert_close(answer(moved, x), answer(graph, x), rtol=1e-4, atol=1e-5)


def test_weights_that_sum_to_one_in_another_type_pass_no_shift_on() -> None:
    """As OPT, BLOOM and LLaMA compute them: in double precision their sums are off by 1e-7."""
    graph = capture(Attention("softmax in float32").double(), torch.rand(2, 6, 8, dtype=torch.float64))
    assert [path.may_shift for _, _, path in found_in(graph)] == [False]


def migrated(graph: Graph, producer: str, consumers: tuple[str, ...], shift: Tensor, scale: Tensor) -> None:
    sites = tuple(site_of(f"{name}/linear#0", "output") for name in consumers)
    edit = Migrate(site_of(f"{producer}/linear#0", "output"), sites, shift, scale)
    realise(graph, Recipe((edit,), signature(graph)))


def test_what_would_change_the_function_is_refused() -> None:
    ones, zeros = torch.ones(8), torch.zeros(8)
    with pytest.raises(BadInput, match="behind weights that need not sum to 1"):
        migrated(attention("no softmax"), "v", ("out",), ones, ones)
    with pytest.raises(BadInput, match="values at v/linear#0:output that another operator reads"):
        migrated(attention("two projections"), "v", ("out",), zeros, 2 * ones)
    with pytest.raises(BadInput, match="matmul between a producer and out/linear#0:output"):
        migrated(attention("values are read too"), "v", ("out",), zeros, 2 * ones)
    with pytest.raises(BadInput, match="with 7 channels"):
        migrated(attention("usual"), "v", ("out",), zeros[:7], ones[:7])
    with pytest.raises(BadInput, match="more than the values"):
        migrated(attention("usual"), "v", ("out", "q"), zeros, ones)
    fused, block = captured("vit"), "blocks.0.attn"
    with pytest.raises(BadInput, match="scale 1 and shift 0 for queries and keys"):
        migrated(fused, f"{block}.qkv", (f"{block}.proj",), torch.zeros(96), torch.full((96,), 2.0))
