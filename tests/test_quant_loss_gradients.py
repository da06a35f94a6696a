"""Gradients of the label-free loss against finite differences and against one sample at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from transformers_graphs import captured, inputs_of

from seatrial.core.graph import Graph, capture
from seatrial.core.sites import operators
from seatrial.errors import BadInput
from seatrial.numerics.observe import tensors_of
from seatrial.quant.loss_gradients import loss_gradients

PLACES = {
    "vit": (
        "image/placeholder#0",
        "patch_embed.proj/conv2d#0",
        "blocks.0.attn/permute#0",  # the samples stand on axis 1
        "blocks.0.attn/getitem#1",
        "blocks.0.attn/softmax#0",
        "blocks.1.mlp.fc1/linear#0",
        "head/linear#0",
    ),
    "swin": (
        "layers.0.blocks.0.attn.qkv/linear#0",  # windows and samples on one axis
        "layers.0.blocks.1.attn/matmul#0",
        "layers.1.downsample.reduction/linear#0",
    ),
    "bert": ("bert.embeddings/add#1", "bert.encoder.layer.1.output.dense/linear#0"),
}


def batch_of(kind: str, count: int = 3) -> tuple[Tensor, ...]:
    return tensors_of(captured(kind), inputs_of(kind, 5, count))


def nodes_of(kind: str) -> list[fx.Node]:
    named = operators(captured(kind))
    return [named[name] for name in PLACES[kind]]


class Moved(fx.Interpreter):
    """Runs a graph in double precision with something added to one value."""

    def __init__(self, graph: Graph, node: fx.Node, by: Callable[[Tensor], Tensor]) -> None:
        super().__init__(graph.module)
        self.node, self.by = node, by

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        return value + self.by(value) if n is self.node else value


@pytest.mark.parametrize("name", ["patch_embed.proj/conv2d#0", "blocks.0.attn/softmax#0", "blocks.1.mlp.fc1/linear#0"])
def test_they_are_slopes_of_the_loss(name: str) -> None:
    """Oracle: central differences of the negative log likelihood in double precision, along random directions."""
    graph = captured("vit", torch.float64)
    node, rng = operators(graph)[name], np.random.default_rng(0)
    (pictures,) = batch_of("vit", 2)
    pictures = pictures.double()
    with torch.no_grad():
        answers = graph.module(pictures).argmax(1)
    with loss_gradients(graph, (pictures,), [node]) as found:
        gradient = found[node].double()
    for _ in range(4):
        way = torch.from_numpy(rng.normal(size=gradient.shape))
        losses = []
        for sign in (1, -1):
            logits = Moved(graph, node, lambda value, way=way, sign=sign: sign * 1e-5 * way).run(pictures).numpy()
            chosen = logits[np.arange(2), answers.numpy()]
            losses.append(float((np.log(np.exp(logits).sum(1)) - chosen).sum()))
        assert float((gradient * way).sum()) == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("kind", PLACES)
def test_each_sample_has_its_own(kind: str) -> None:
    """Oracle: autograd by something added to the value, every sample alone."""
    graph, nodes, batch = captured(kind), nodes_of(kind), batch_of(kind)
    with loss_gradients(graph, batch, nodes, chunk=2) as found:
        together = {node: value.clone() for node, value in found.items()}
    for row in range(3):
        alone = tuple(tensor[row : row + 1] for tensor in batch)
        for node in nodes:
            wanted = of_one(graph, alone, node)
            axis = next(i for i, (a, b) in enumerate(zip(wanted.shape, together[node].shape, strict=True)) if a != b)
            part = together[node].narrow(axis, row * wanted.shape[axis], wanted.shape[axis])
            torch.testing.assert_close(part, wanted, rtol=1e-3, atol=1e-6 + 1e-4 * float(wanted.abs().max()))


def of_one(graph: Graph, batch: tuple[Tensor, ...], node: fx.Node) -> Tensor:
    shift: list[Tensor] = []

    def by(value: Tensor) -> Tensor:
        shift.append(torch.zeros_like(value, requires_grad=True))
        return shift[0]

    logits = Moved(graph, node, by).run(*batch)
    torch.log_softmax(logits, 1).amax(1).sum().neg().backward(inputs=shift)
    assert shift[0].grad is not None
    return shift[0].grad


@settings(max_examples=5)
@given(st.integers(1, 6), st.integers(1, 8))
def test_chunks_do_not_matter(count: int, chunk: int) -> None:
    graph, nodes, batch = captured("vit"), nodes_of("vit")[2:5], batch_of("vit", count)
    with (
        loss_gradients(graph, batch, nodes, chunk=chunk) as parts,
        loss_gradients(graph, batch, nodes, chunk=9) as whole,
    ):
        for node in nodes:
            assert parts[node].dtype == torch.float32
            torch.testing.assert_close(parts[node], whole[node], rtol=1e-3, atol=1e-6)


def test_a_divergence_from_the_own_prediction_has_no_gradient() -> None:
    """Why the loss is a cross entropy: the paper's is flat at the float network."""
    graph = captured("vit")
    logits = graph.module(*batch_of("vit")).detach().requires_grad_()
    torch.nn.functional.kl_div(logits.log_softmax(1), logits.detach().softmax(1), reduction="batchmean").backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-7
    head = operators(graph)["head/linear#0"]
    with loss_gradients(graph, batch_of("vit"), [head]) as found:
        assert float(found[head].abs().max()) > 0.1


def test_the_file_goes_and_the_graph_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))
    graph = capture(module, torch.rand(2, 3, 2, 2))
    for parameter in graph.module.parameters():
        parameter.requires_grad_(True)
    node = operators(graph)["1/linear#0"]
    pictures = torch.rand(5, 3, 2, 2)
    with loss_gradients(graph, (pictures,), [node], chunk=2) as found:
        assert list(tmp_path.rglob("*.gradient"))
        assert found[node].shape == (5, 4)
    assert list(tmp_path.iterdir()) == []
    assert all(parameter.grad is None for parameter in graph.module.parameters())
    assert not pictures.requires_grad


class Flawed(nn.Module):
    """What cannot be differentiated, or not by sample."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.table = nn.Linear(4, 3), nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        swapped = x.mean((2, 3)).reshape(-1, 2, 2).transpose(0, 1).reshape(-1, 2).relu()
        index = x.mean((2, 3)).argmax(1)
        back = swapped.reshape(2, -1, 2).transpose(0, 1).reshape(-1, 4) + self.table.relu()
        return self.head(back + index[:, None])


def test_bad_inputs_are_refused() -> None:
    torch.manual_seed(0)
    graph = capture(Flawed(), torch.rand(2, 4, 2, 2))
    named = operators(graph)
    relus = [node for name, node in named.items() if "relu" in name]
    pictures = (torch.rand(4, 4, 2, 2),)
    whole = [(relus[0], "interleaved"), (relus[1], "one axis with the samples"), (named["/argmax#0"], "real numbers")]
    for node, message in whole:
        with pytest.raises(BadInput, match=message), loss_gradients(graph, pictures, [node], chunk=2):
            pass
    with loss_gradients(graph, pictures, [relus[0]]) as found:  # one chunk needs no order
        assert found[relus[0]].shape == (8, 2)
    node = named["head/linear#0"]
    with pytest.raises(BadInput, match="not finite"), loss_gradients(graph, (pictures[0] * torch.nan,), [node]):
        pass
    with pytest.raises(BadInput, match="chunks of 0"), loss_gradients(graph, pictures, [node], chunk=0):
        pass
    language = captured("opt")
    last = list(operators(language).values())[-1]
    with pytest.raises(BadInput, match=r"logits \[batch, classes\]"), loss_gradients(language, batch_of("opt"), [last]):
        pass
