"""Hard sigmoids spelled out: equal values, and no float operator of their own on OpenVINO."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from seatrial.core.graph import Graph, capture
from seatrial.core.sites import op_name
from seatrial.deploy.hard_sigmoid import spelled_out
from seatrial.deploy.openvino import OpenVino


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.gate = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (x * self.gate(4 * self.up(x.mean((2, 3), keepdim=True)))).mean((2, 3))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(Gate(), torch.rand(2, 3, 8, 8))


def test_values_stay_and_the_graph_is_not_changed(graph: Graph):
    kinds = [op_name(node) for node in graph.nodes()]
    new = spelled_out(graph)
    assert [op_name(node) for node in graph.nodes()] == kinds
    assert "hardsigmoid" in kinds
    assert "hardsigmoid" not in [op_name(node) for node in new.nodes()]
    x = 6 * torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # reaches both flat parts
    torch.testing.assert_close(new.module(x), graph.module(x), rtol=1e-5, atol=1e-6)


def test_a_graph_without_hard_sigmoids_is_returned_as_it_is():
    plain = capture(nn.Conv2d(3, 4, 3), torch.rand(2, 3, 8, 8))
    assert spelled_out(plain) is plain


def test_openvino_recognizes_it(graph: Graph, tmp_path: Path):
    openvino = pytest.importorskip("openvino")
    artefact = OpenVino().compile(graph, tmp_path / "gate", bits="float32")
    core = openvino.Core()
    model = core.read_model(str(artefact.path))
    model.reshape([1, 3, 8, 8])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [str(op.get_rt_info()["originalLayersNames"].astype(str)) for op in compiled.get_runtime_model().get_ops()]
    kinds = [str(op.get_rt_info()["layerType"].astype(str)) for op in compiled.get_runtime_model().get_ops()]
    assert "Math" not in kinds, names
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    deployed = OpenVino().open(artefact, threads=1)(x)
    torch.testing.assert_close(deployed, graph.module(x), rtol=1e-4, atol=1e-5)
