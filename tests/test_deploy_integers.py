"""The simulation in whole numbers: what each runtime answers, an integer oracle, gradients, nothing else changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from deploy_graph import float_graph, quantized
from torch import Tensor, nn

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, GraphPredictor, capture
from seatrial.core.precision import Bits
from seatrial.core.realise import realise
from seatrial.core.sites import attribute, op_name
from seatrial.core.target import Target
from seatrial.deploy.clamped_norm import clamped_norms
from seatrial.deploy.integers import Arithmetic, in_integers
from seatrial.deploy.onnxruntime import OnnxRuntime
from seatrial.deploy.onnxruntime_arithmetic import OnnxRuntimeArithmetic
from seatrial.deploy.openvino import OpenVino
from seatrial.deploy.openvino_arithmetic import OpenVinoArithmetic
from seatrial.deploy.torch_target import Torch
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place

ARITHMETICS = [OnnxRuntimeArithmetic(), OpenVinoArithmetic()]


class Residual(nn.Module):
    """A residual block whose sum a convolution joins, one with two convolutions before it, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(n, 16, 3, padding=1) for n in (3, 16, 16))
        self.c, self.short = nn.Conv2d(16, 24, 3, 2, 1), nn.Conv2d(16, 24, 1, 2)
        self.left, self.right, self.head = nn.Conv2d(24, 8, 1), nn.Conv2d(24, 8, 3, padding=1), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.b(self.a(x).relu()) + x).relu()
        x = (self.c(x) + self.short(x)).relu()
        return self.head(torch.cat([self.left(x).relu(), self.right(x).relu()], 1).mean((2, 3)))


class Inverted(nn.Module):
    """Inverted residuals with ReLU6 and sums without an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.clip = nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU6()
        self.wide, self.deep = nn.Conv2d(12, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.narrow, self.last, self.head = nn.Conv2d(24, 12, 1), nn.Conv2d(12, 16, 1), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.clip(self.stem(x) * 6)
        x = x + self.narrow(self.clip(self.deep(self.clip(self.wide(x)))))
        return self.head(self.clip(self.last(x)).mean((2, 3)))


class NormsLast(nn.Module):
    """Convolution, ReLU, batch norm, in this order; the second norm turns some channels around."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12)
        self.point, self.two = nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12)
        self.deep, self.head = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 8, 1)
        with torch.no_grad():
            for norm in (self.one, self.two):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.uniform_(-0.5, 0.5)
                norm.running_mean.uniform_(0, 0.4)  # pyright: ignore[reportOptionalMemberAccess]
                norm.running_var.uniform_(0.2, 1)  # pyright: ignore[reportOptionalMemberAccess]
            self.two.weight[::3] *= -1

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.stem(x).relu())
        x = self.deep(self.two(self.point(x).relu()))
        return self.head(x).mean((2, 3))


class Swishes(nn.Module):
    """Squeeze-and-excite with swishes, written both ways, and means with and without their places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.down, self.up, self.act = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1), nn.SiLU()
        self.last, self.head = nn.Conv2d(16, 24, 1), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.deep(self.act(self.stem(4 * x - 2))))
        x = x * self.up(self.act(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()
        x = self.last(x)
        return self.head((x * x.sigmoid()).mean((-1, -2)))


NETWORKS = {"residual": Residual, "inverted": Inverted, "norms last": NormsLast, "swishes": Swishes}


def pictures(seed: int, count: int = 32) -> Tensor:
    return torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def graphs() -> dict[str, Graph]:
    torch.manual_seed(0)
    return {name: fold_batch_norm(capture(make().eval(), torch.rand(2, 3, 24, 24))) for name, make in NETWORKS.items()}


def rounded(graph: Graph, target: Target) -> Graph:
    sites = place(graph, target.placement, Bits(8, 8))
    return realise(graph, Nearest().plan(graph, [pictures(1, 16)], sites, rng=generator(0)))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", [OnnxRuntime, OpenVino])
def test_the_simulation_is_what_the_runtime_answers(
    kind: type[OnnxRuntime | OpenVino], name: str, graphs: dict[str, Graph], tmp_path: Path
) -> None:
    target, x = kind(), pictures(2)
    if not kind.installed():
        pytest.skip(f"{target.name} is not installed")
    graph = rounded(graphs[name], target)
    predictor = target.open(target.compile(graph, tmp_path / "model", bits="w8a8"), threads=1)
    answered = predictor(x)
    predictor.close()
    with torch.no_grad():
        simulated, written = target.simulated(graph).module(x), graph.module(x)
    # Only a value at the border of two codes, moved by the last bit of a constant, makes a difference.
    assert float(((answered - simulated).abs().amax(1) < 1e-5).float().mean()) >= (1.0 if kind is OnnxRuntime else 0.9)
    assert float((simulated - written).norm() / written.norm()) < 0.05


def test_the_accumulators_are_those_of_integer_arithmetic() -> None:
    """int64 sums, and the multiplier of Jacob et al. 2018, eq. 5 to 7."""
    x, generator_ = pictures(3, 4), torch.Generator().manual_seed(5)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1))
    graph = capture(model.eval(), x[:2])
    target = OnnxRuntime()
    realised = realise(graph, Nearest().plan(graph, [x], place(graph, target.placement, Bits(8, 8)), rng=generator(0)))
    first, second = (node for node in realised.nodes() if op_name(node) == "conv2d")

    def held(node: object, index: int) -> np.ndarray:
        assert isinstance(node, torch.fx.Node)
        return attribute(realised.module, str(node.args[index].target)).numpy()  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]

    grids = [(held(node, 1), held(node, 2)) for node in (first.args[0], first.args[1], second.args[0])]
    weight, bias = held(first.args[1], 0), held(first, 2)
    (sx, zx), (sw, _), (sy, zy) = grids
    x = torch.rand(4, 3, 24, 24, generator=generator_)
    codes = np.clip(np.rint(x.numpy() / sx) + zx, 0, 255).astype(np.int64) - zx
    kernel = np.rint(weight / sw.reshape(-1, 1, 1, 1)).astype(np.int64)
    padded = np.pad(codes, ((0, 0), (0, 0), (1, 1), (1, 1)))
    sums = sum(
        np.einsum("nchw,oc->nohw", padded[:, :, i : i + 24, j : j + 24], kernel[:, :, i, j])
        for i in range(3)
        for j in range(3)
    )
    sums = sums + np.rint(bias / (sx * sw)).astype(np.int64).reshape(-1, 1, 1)
    multiplier = (sx * sw / sy).astype(np.float32).reshape(-1, 1, 1)
    wanted = np.clip(np.rint(sums.astype(np.float32) * multiplier) + zy, 0, 255) - zy

    class Codes(torch.fx.Interpreter):
        seen: list[Tensor]

        def run_node(self, n: torch.fx.Node) -> Tensor:
            value = super().run_node(n)
            if op_name(n) == "qdq":
                self.seen.append(value)
            return value

    reader = Codes(in_integers(realised, OnnxRuntimeArithmetic()).module)
    reader.seen = []
    with torch.no_grad():
        reader.run(x)
    np.testing.assert_array_equal(reader.seen[0].numpy(), codes)
    np.testing.assert_array_equal(reader.seen[1].numpy(), wanted)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_gradients_stay_and_the_graph_is_not_changed(arithmetic: Arithmetic, graphs: dict[str, Graph]) -> None:
    graph = rounded(graphs["residual"], OpenVino())
    code, state = graph.module.code, {k: v.clone() for k, v in graph.module.state_dict().items()}
    simulation = in_integers(graph, arithmetic)
    assert graph.module.code == code
    assert all(torch.equal(v, state[k]) for k, v in graph.module.state_dict().items())
    gradients = []
    for each in (graph, simulation):
        x = pictures(4, 8).requires_grad_()
        each.module(x).square().sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    # Codes that fall on the other side open and close a gate here and there.
    assert float(nn.functional.cosine_similarity(*(each.flatten() for each in gradients), dim=0)) > 0.98


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_it_survives_being_saved(arithmetic: Arithmetic, graphs: dict[str, Graph], tmp_path: Path) -> None:
    simulation = in_integers(rounded(graphs["inverted"], OnnxRuntime()), arithmetic)
    target, x = Torch(), pictures(5, 3)
    with torch.no_grad():
        wanted = simulation.module(x)
    assert torch.equal(target.open(target.compile(simulation, tmp_path / "net", bits="w8a8"), threads=1)(x), wanted)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize(
    "options",
    [
        {"activation_axis": 1},
        {"weights": 16},
        {"activations": 16},
        {"weights": 4, "activations": 3},
        {"float_weights": ("first",)},
    ],
)
def test_other_grids_mean_what_they_meant(options: dict, arithmetic: Arithmetic) -> None:
    x = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    graph = quantized(float_graph(), x, **options)
    with torch.no_grad():
        wanted, found = graph.module(x), in_integers(graph, arithmetic).module(x)
    assert float((found - wanted).norm() / wanted.norm()) < (0.2 if "weights" in options else 0.01)


def test_a_norm_behind_a_relu_becomes_limits(graphs: dict[str, Graph]) -> None:
    graph = rounded(graphs["norms last"], OnnxRuntime())
    limited = clamped_norms(graph)
    kinds = [op_name(node) for node in limited.nodes()]
    assert (kinds.count("batch_norm"), kinds.count("maximum"), kinds.count("minimum")) == (0, 2, 1)
    assert sum(op_name(node) == "batch_norm" for node in graph.nodes()) == 2
    x = pictures(6)
    with torch.no_grad():
        before, after = graph.module(x), limited.module(x)
    # The same function: what is left are values at the border of two codes.
    assert float((before - after).norm() / before.norm()) < 5e-3
    assert clamped_norms(limited) is limited


def test_norms_that_cannot_be_limits_are_left(graphs: dict[str, Graph]) -> None:
    plain = graphs["norms last"]
    assert clamped_norms(plain) is plain  # nothing is rounded
    assert clamped_norms(graphs["residual"]) is graphs["residual"]


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_narrow_products_do_not_overflow(arithmetic: Arithmetic, kind: str, graphs: dict[str, Graph]) -> None:
    simulation, x = in_integers(rounded(graphs["residual"], OpenVino()), arithmetic), pictures(7, 4)
    with torch.no_grad():
        wide, narrow = (GraphPredictor(simulation, arithmetic=each)(x) for each in ("as-is", kind))
    assert float((wide - narrow).norm() / wide.norm()) < 0.05
