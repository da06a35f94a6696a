"""Linear operators of pictures on flat places: equal values, fewer operators on OpenVINO."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.precision import Bits
from seatrial.core.realise import realise
from seatrial.core.sites import op_name
from seatrial.deploy.flat_linear import flat_linears
from seatrial.deploy.openvino import OpenVino
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place


class Block(nn.Module):
    """The tail of a ConvNeXt block: layer norm, two linear operators with GELU between, a scale, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.act, self.down = nn.LayerNorm(8), nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)
        self.scale, self.head = nn.Parameter(torch.rand(8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        y = self.down(self.act(self.up(self.norm(y)))) * self.scale
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(Block(), torch.rand(2, 8, 6, 5))


def pictures(seed: int, count: int = 3) -> Tensor:
    return torch.randn(count, 8, 6, 5, generator=torch.Generator().manual_seed(seed))


def rounded(graph: Graph) -> Graph:
    sites = place(graph, OpenVino().placement, Bits(8, 8))
    return realise(graph, Nearest().plan(graph, [pictures(1)], sites, rng=generator(0)))


@pytest.mark.parametrize("kind", ["float", "rounded"])
def test_values_stay_for_any_batch_and_the_graph_is_not_changed(kind: str, graph: Graph):
    old = graph if kind == "float" else rounded(graph)
    code = old.module.code
    new = flat_linears(old)
    assert old.module.code == code
    for count in (1, 4):
        torch.testing.assert_close(new.module(pictures(2, count)), old.module(pictures(2, count)), rtol=1e-5, atol=1e-6)


def test_what_is_computed_by_element_stays_flat_between_two_views(graph: Graph):
    kinds = [op_name(node) for node in flat_linears(rounded(graph)).nodes() if node.op == "call_function"]
    first, last = kinds.index("view"), len(kinds) - 1 - kinds[::-1].index("view")
    assert kinds.count("view") == 2
    between = [kind for kind in kinds[first + 1 : last] if kind != "qdq"]
    assert between == ["linear", "gelu", "linear", "mul"]


def test_a_graph_without_such_operators_is_returned_as_it_is():
    tokens = capture(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), torch.rand(2, 5, 8))
    assert flat_linears(tokens) is tokens


def test_openvino_subtracts_no_zero_points_by_themselves(graph: Graph, tmp_path: Path):
    openvino = pytest.importorskip("openvino")
    artefact = OpenVino().compile(rounded(graph), tmp_path / "block", bits="w8a8")
    core = openvino.Core()
    model = core.read_model(str(artefact.path))
    model.reshape([1, 8, 6, 5])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [op.get_friendly_name() for op in compiled.get_runtime_model().get_ops()]
    assert not any("DequantizationSubtract" in name for name in names), names
