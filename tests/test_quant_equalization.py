"""Equalization: the function of the network stays, and channels fill their grids."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from seatrial.core.graph import Graph, capture
from seatrial.core.precision import Precision
from seatrial.core.realise import realise
from seatrial.core.recipe import Recipe, Replace
from seatrial.core.sites import Site, attribute, op_name, operators, signature, site_of
from seatrial.numerics.observe import watch
from seatrial.quant.channel_groups import channel_groups
from seatrial.quant.equalization import equalize, equalize_depthwise

Run = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Convolutions (full `f1`, `f2`, depthwise `d1`, `d2`, grouped `g`), batch norms with statistics, and a head."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.run = run
        self.f1, self.f2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1, bias=False)
        self.d1, self.d2 = (nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=i > 0) for i in range(2))
        self.g = nn.Conv2d(6, 8, 3, padding=1, groups=2)
        self.n1, self.n2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        for norm in (self.n1, self.n2):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            norm.running_mean = torch.randn(6)
            norm.running_var = torch.rand(6) + 0.1
        with torch.no_grad():
            self.f1.weight.mul_(torch.tensor([0.02, 0.1, 1, 2, 5, 10]).reshape(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


NETWORKS: dict[str, tuple[Run, int]] = {
    # name: the network, and how many of its groups are equalized when everything is rounded
    "conv, relu, depthwise": (lambda s, x: s.d1(s.f1(x).relu()), 1),
    "conv, relu, norm, depthwise": (lambda s, x: s.d1(s.n1(s.f1(x).relu())), 1),
    "depthwise, full": (lambda s, x: s.f2(s.d1(s.f1(x))), 2),
    "depthwise, relu, grouped": (lambda s, x: s.g(s.d1(s.f1(x).relu()).relu()), 2),
    "max pool and padding": (lambda s, x: s.d1(nn.functional.pad(s.f1(x).relu(), (0, 1, 0, 1))), 1),
    "residual stream": (lambda s, x: s.g(residual(s, s.n1(s.f1(x).relu()))), 2),
    "mean": (lambda s, x: s.f2(s.n1(s.d1(s.f1(x)).relu()).mean((2, 3), keepdim=True)), 2),
    "no depthwise": (lambda s, x: s.f2(s.f1(x).relu()), 0),
    "relu6 closes": (lambda s, x: s.d1(nn.functional.relu6(s.f1(x))), 0),
    "addition with a constant closes": (lambda s, x: s.d1(s.f1(x) + 1.0), 0),
    "broadcast closes": (lambda s, x: s.d1(s.f1(x) + s.f1(x).mean((2, 3), keepdim=True)), 0),
    "one channel for all closes": (lambda s, x: s.d1(s.f1(x)).mean(1, keepdim=True), 1),
    "a weight for two closes": (lambda s, x: s.d1(s.d1(s.f1(x))), 0),
    "output closes": (lambda s, x: s.f1(x), 0),
}


def residual(s: Net, x: Tensor) -> Tensor:
    x = x + s.n2(s.d1(x).relu())
    return x + s.d2(x)


def everything(graph: Graph) -> dict[Site, Precision]:
    """Ask for 8 bits on every output and a grid for each channel of every weight."""
    found = {}
    for name, node in operators(graph).items():
        found[site_of(name, "output")] = Precision(8)
        if op_name(node) == "conv2d":
            found[site_of(name, "weight")] = Precision(8, signed=True, symmetric=True, axis=0, narrow=True)
    return found


def pictures(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(4, 3, 9, 9, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays(name: str, dtype: torch.dtype) -> None:
    run, count = NETWORKS[name]
    net = Net(run).eval().to(dtype)
    graph = capture(net, pictures(dtype)[0])
    edits = equalize_depthwise(graph, pictures(dtype), everything(graph))
    assert all(isinstance(edit, Replace) and edit.value.dtype == dtype for edit in edits)
    assert bool(edits) == bool(count)
    equal = realise(graph, Recipe(tuple(edits), signature(graph)))
    x = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
    before, after = graph.module(x), equal.module(x)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    assert float((before - after).norm() / before.norm()) < tolerance
    again = equalize_depthwise(graph, pictures(dtype), everything(graph))
    assert all(torch.equal(a.value, b.value) for a, b in zip(edits, again, strict=True))


@pytest.mark.parametrize("name", ["conv, relu, depthwise", "conv, relu, norm, depthwise"])
def test_channels_that_a_depthwise_convolution_reads_have_one_peak(name: str) -> None:
    graph = capture(Net(NETWORKS[name][0]).eval(), pictures()[0])
    # One sample: largest and mean peak are the same.
    batches = [pictures()[0][:1]]
    reads = next(node for node in graph.nodes() if op_name(node) == "conv2d" and node.args[6:] == (6,)).args[0]
    read = next(site_of(name, "output") for name, node in operators(graph).items() if node is reads)
    edits = equalize_depthwise(graph, batches, {read: Precision(8)})
    equal = realise(graph, Recipe(tuple(edits), signature(graph)))
    reader = next(node for node in equal.nodes() if op_name(node) == "conv2d" and node.args[6:] == (6,))
    peaks: list[Tensor] = []
    watch(equal, batches, {reader.args[0]: lambda x: peaks.append(x.abs().amax((0, 2, 3)))})  # pyright: ignore[reportArgumentType]
    # Scales stay within 1/64 of the largest, so weaker channels than that stay weaker.
    before: list[Tensor] = []
    watch(graph, batches, {reads: lambda x: before.append(x.abs().amax((0, 2, 3)))})  # pyright: ignore[reportArgumentType]
    strong = before[0] > before[0].max() / 64
    assert int(strong.sum()) >= 4
    assert torch.allclose(peaks[0][strong], peaks[0].max(), rtol=1e-4)


def test_a_residual_stream_is_one_group() -> None:
    graph = capture(Net(NETWORKS["residual stream"][0]).eval(), pictures()[0])
    stream = max(channel_groups(graph), key=lambda group: len(group.tensors))
    assert [op_name(node) for node in stream.tensors] == ["batch_norm", "batch_norm", "add", "conv2d", "add"]
    assert len(stream.producers) == 3
    assert len(stream.consumers) == 3


def test_dead_channels_keep_their_scale() -> None:
    net = Net(NETWORKS["conv, relu, depthwise"][0]).eval()
    with torch.no_grad():
        net.f1.weight[2] = 0
        net.f1.bias[2] = 0  # pyright: ignore[reportOptionalSubscript]
    graph = capture(net, pictures()[0])
    edits = {str(edit.site): edit.value for edit in equalize_depthwise(graph, pictures(), everything(graph))}
    assert torch.equal(edits["d1/conv2d#0:weight"][2], net.d1.weight[2])


def test_weights_on_one_grid_are_left_alone() -> None:
    graph = capture(Net(NETWORKS["conv, relu, depthwise"][0]).eval(), pictures()[0])
    wanted = everything(graph)
    wanted[Site.parse("d1/conv2d#0:weight")] = Precision(8, signed=True, symmetric=True)
    assert equalize_depthwise(graph, pictures(), wanted) == []
    assert equalize_depthwise(graph, pictures(), {}) == []


@pytest.mark.parametrize("name", ["no depthwise", "depthwise, full", "depthwise, relu, grouped"])
def test_cross_layer_equalization_makes_both_ranges_equal(name: str) -> None:
    graph = capture(Net(NETWORKS[name][0]).eval(), pictures()[0])
    edits = equalize(graph)
    assert edits
    equal = realise(graph, Recipe(tuple(edits), signature(graph)))
    x = pictures()[1]
    assert float((graph.module(x) - equal.module(x)).norm() / graph.module(x).norm()) < 1e-5
    if name == "no depthwise":
        first, second = (node for node in equal.nodes() if op_name(node) == "conv2d")
        r1, r2 = (attribute(equal.module, str(node.args[1])).abs() for node in (first, second))
        r1, r2 = r1.amax((1, 2, 3)), r2.amax((0, 2, 3))
        assert torch.allclose(r1, r2, rtol=1e-4)
