"""What each runtime computes in integers, by the kernels of its own profile: no rounds for nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.precision import Bits
from seatrial.core.realise import realise
from seatrial.core.target import Artefact, Target
from seatrial.deploy import operators
from seatrial.deploy.onnxruntime import OnnxRuntime
from seatrial.deploy.openvino import OpenVino
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place


class Shifted(nn.Module):
    """A shifted window of tokens with a padding by nothing in front of a linear operator, a mean and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 16, 4, stride=4), nn.LayerNorm(16)
        self.mix, self.act, self.head = nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(self.norm(self.patch(x).permute(0, 2, 3, 1)), (-1, -1), (1, 2))
        x = nn.functional.pad(x, (0, 0, 0, 0, 0, 0)).reshape(-1, 2, 3, 2, 3, 16).transpose(2, 3).reshape(-1, 9, 16)
        return self.head(self.act(self.mix(x)).reshape(-1, 36, 32).mean(1))


class Upsampled(nn.Module):
    """Two convolutions with an upsampling between, one along a line, and one that writes the network's output."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.line, self.last = nn.Conv1d(16, 16, 3, padding=1), nn.Conv1d(16, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(nn.functional.interpolate(self.one(x).relu(), scale_factor=2.0)).relu()
        return self.last(self.line(x.flatten(2)).relu())


class Excited(nn.Module):
    """A squeeze-and-excite branch and swishes between convolutions, a mean, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.last, self.act, self.head = nn.Conv2d(16, 24, 1), nn.SiLU(), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(4 * x - 2))
        x = x * self.up(self.act(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head(self.act(self.last(x)).mean((2, 3)))


def pictures(seed: int) -> Tensor:
    return torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


def rounded(kind: type[nn.Module], target: OnnxRuntime | OpenVino) -> Graph:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        graph = fold_batch_norm(capture(kind().eval(), pictures(0)[:2]))
    sites = place(graph, target.placement, Bits(8, 8))
    return realise(graph, Nearest().plan(graph, [pictures(1)], sites, rng=generator(0)))


def compiled(kind: type[nn.Module], target: OnnxRuntime | OpenVino, folder: Path) -> Artefact:
    if not target.installed():
        pytest.skip(f"{target.name} is not installed")
    graph = rounded(kind, target)
    artefact = target.compile(graph, folder / "model", bits="w8a8")
    predictor, x = target.open(artefact, threads=1), pictures(2)
    with torch.no_grad():
        plain = graph.module(x)
        # Only a value at the border of two codes makes a difference.
        torch.testing.assert_close(predictor(x), target.simulated(graph).module(x), rtol=0, atol=0.02 * plain.std())
    predictor.close()
    return artefact


def kernels(target: Target, artefact: Artefact) -> Counter[str]:
    return Counter(entry.kind for entry in operators.profile(target, artefact, threads=1, runs=2))


def test_onnxruntime_runs_the_window_and_the_classifier_in_integers(tmp_path: Path) -> None:
    target = OnnxRuntime()
    artefact = compiled(Shifted, target, tmp_path)
    assert "Pad" not in {node.op_type for node in onnx.load(artefact.path).graph.node}
    found = kernels(target, artefact)
    assert (found["MatMulIntegerToFloat"], found["QGemm"], found["Conv"]) == (1, 1, 1)  # the patches feed a layer norm
    assert not found.keys() & {"MatMulNBits", "Gemm", "MatMul"}


def test_onnxruntime_runs_swishes_and_means_in_integers(tmp_path: Path) -> None:
    target = OnnxRuntime()
    found = kernels(target, compiled(Excited, target, tmp_path))
    assert (found["QLinearGlobalAveragePool"], found["QLinearSigmoid"], found["QLinearMul"]) == (2, 4, 4)
    assert (found["QLinearConv"], found["QGemm"]) == (4, 1)
    assert not found.keys() & {"ReduceMean", "GlobalAveragePool", "Sigmoid", "Conv", "Gemm"}


def test_onnxruntime_runs_convolutions_around_an_upsampling_and_along_a_line_in_integers(tmp_path: Path) -> None:
    target = OnnxRuntime()
    found = kernels(target, compiled(Upsampled, target, tmp_path))
    assert (found["QLinearConv"], found["Conv"]) == (3, 1)  # the last one writes the output, which is float


def test_openvino_runs_a_shifted_window_in_integers(tmp_path: Path) -> None:
    target = OpenVino()
    artefact = compiled(Shifted, target, tmp_path)
    times = [
        entry for entry in operators.profile(target, artefact, threads=1, runs=2) if "FullyConnected" in entry.kind
    ]
    assert len(times) == 2
    assert not any("Compressed" in entry.kind for entry in times), times
