"""Weights on grids of groups in ONNX files: integers that both runtimes multiply as the simulation does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import Tensor, nn
from transformers_graphs import answer, captured, inputs_of

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.grids import Grouped
from seatrial.core.insert_round import fake
from seatrial.core.precision import Precision
from seatrial.core.realise import realise
from seatrial.core.recipe import Recipe, Round
from seatrial.core.sites import signature, site_of
from seatrial.deploy.onnx_export import export_onnx, write_onnx
from seatrial.deploy.onnxruntime import OnnxRuntime
from seatrial.deploy.openvino import OpenVino
from seatrial.quant.nearest import Nearest
from seatrial.quant.weight_only import weight_only

TARGETS: list[OnnxRuntime | OpenVino] = [OnnxRuntime(), OnnxRuntime(group_products="float32"), OpenVino()]
NAMES = ["onnxruntime", "onnxruntime-float", "openvino"]
RTN = Nearest(bias_correction=False)


class Layers(nn.Module):
    """Linear operators with and without bias, on rows and on sequences; 100 inputs fill no group of 16 or more."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.head = nn.Linear(100, 40), nn.Linear(40, 64, bias=False), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(self.wide(x.flatten(2)).tanh())
        return self.head(x.mean(1))


PICTURES = torch.rand(5, 3, 10, 10, generator=torch.Generator().manual_seed(1)) - 0.5


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(Layers(), PICTURES)


def rounded(graph: Graph, bits: int, group: int, *, symmetric: bool = False) -> Graph:
    wanted = Precision(bits, signed=False, symmetric=symmetric, group=group)
    sites = dict.fromkeys(weight_only(graph, bits, group, head=True), wanted)
    recipe = RTN.plan(graph, [PICTURES], sites, rng=generator(0, "groups"))
    return realise(graph, recipe)


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
@pytest.mark.parametrize(("bits", "group"), [(3, 32), (4, 16), (4, 128), (8, 32)])
def test_the_deployed_file_answers_as_the_simulation(
    bits: int, group: int, target: OnnxRuntime | OpenVino, graph: Graph, tmp_path: Path
) -> None:
    if not target.installed():
        pytest.skip("needs openvino")
    network = rounded(graph, bits, group, symmetric=bits == 3)
    artefact = target.compile(network, tmp_path / "model", bits=f"w{bits}")
    assert kinds(artefact.path)["MatMulNBits"] == 3
    assert artefact.settings.get("group_products") == getattr(target, "group_products", None)
    assert "float_groups" not in artefact.settings
    predictor = target.open(artefact, threads=1)
    told, simulated = predictor(PICTURES), answer(target.simulated(network), PICTURES)
    assert float((told - simulated).norm() / simulated.norm()) < 1e-5
    # Rounded inputs are another computation: the float simulation is near, and further than the last bits.
    off = float((told - answer(network, PICTURES)).norm() / simulated.norm())
    assert 1e-5 < off < 0.05 if target == TARGETS[0] else off < 1e-5
    predictor.close()


@pytest.mark.parametrize(
    ("name", "target"),
    [("llama", TARGETS[0]), ("llama", TARGETS[2]), ("bert", TARGETS[0])],
    ids=["llama-onnxruntime", "llama-openvino", "bert-onnxruntime"],
)
def test_transformers_run_with_packed_weights(name: str, target: OnnxRuntime | OpenVino, tmp_path: Path) -> None:
    if not target.installed():
        pytest.skip("needs openvino")
    graph, inputs = captured(name), inputs_of(name, seed=3)
    sites = weight_only(graph, 4, 16)
    network = realise(graph, Nearest().plan(graph, [inputs_of(name)], sites, rng=generator(0, name)))
    artefact = target.compile(network, tmp_path / "model", bits="w4")
    assert kinds(artefact.path)["MatMulNBits"] == len(sites)
    predictor = target.open(artefact, threads=1)
    told, simulated = predictor(inputs), answer(target.simulated(network), inputs)
    # Codes of inputs flip where the runtime's float sums differ in their last bits.
    most = 0.01 if target == TARGETS[0] else 1e-4
    assert float((told - simulated).norm() / simulated.norm()) < most
    predictor.close()


@pytest.mark.parametrize(("bits", "most"), [(4, 0.2), (8, 0.35)])
def test_weights_are_stored_in_their_bits(bits: int, most: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(*(nn.Linear(256, 256) for _ in range(4)))
    inputs = torch.rand(2, 3, 16, 16)
    graph = capture(nn.Sequential(nn.Flatten(2), wide), inputs)
    sites = weight_only(graph, bits, 32, head=True)
    network = realise(graph, RTN.plan(graph, [inputs], sites, rng=generator(0, "size")))
    packed = OnnxRuntime().compile(network, tmp_path / "packed", bits=f"w{bits}")
    whole = export_onnx(graph, tmp_path / "whole.onnx").stat().st_size
    # The codes, a float scale and a zero point for each group of 32, and some names.
    assert packed.size_bytes < whole * (bits / 32 + (32 + bits) / 32 / 32) + 4 * 256 * 4 + 6000
    assert packed.size_bytes < most * whole


def test_what_the_operator_does_not_take_stays_float_and_is_told(graph: Graph, tmp_path: Path) -> None:
    network = rounded(graph, 4, 24)
    exported = write_onnx(network, tmp_path / "model.onnx", group_products="float32")
    assert exported.packed_groups == ()
    assert exported.float_groups == ("wide.weight", "narrow.weight", "head.weight")
    for target in (OnnxRuntime(), OpenVino()):
        if not target.installed():
            continue
        artefact = target.compile(network, tmp_path / target.name, bits="w4")
        assert artefact.settings["float_groups"] == "3"
        told = target.open(artefact, threads=1)(PICTURES)
        assert float((told - answer(network, PICTURES)).norm() / told.norm()) < 1e-5
    # A file for any runtime holds standard operators alone.
    exported = write_onnx(rounded(graph, 4, 16), tmp_path / "standard.onnx")
    assert {node.domain for node in onnx.load(exported.path).graph.node} == {""}
    assert len(exported.float_groups) == 3


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_packed_as_the_runtimes_own_quantizer_packs_them(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.rand(2, 3, 8, 9)
    graph = capture(nn.Sequential(nn.Flatten(2), nn.Linear(72, 24, bias=False)), inputs)
    quantizer = MatMulNBitsQuantizer(
        onnx.load(export_onnx(graph, tmp_path / "float.onnx")), bits=bits, block_size=16, is_symmetric=False
    )
    quantizer.process()
    theirs = quantizer.model.model  # pyright: ignore[reportAttributeAccessIssue]
    (product,) = (node for node in theirs.graph.node if node.op_type == "MatMulNBits")
    arrays = {held.name: numpy_helper.to_array(held) for held in theirs.graph.initializer}
    codes, scale, zero = (arrays[name] for name in product.input[1:4])
    grid = Grouped(bits, torch.tensor(scale.reshape(24, 5)), torch.tensor(unpacked(zero.reshape(24, -1), bits, 5)), 16)
    network = realise(graph, Recipe((Round(site_of("1/linear#0", "weight"), grid),), signature(graph)))
    exported = write_onnx(network, tmp_path / "ours.onnx", group_products="float32")
    ours = onnx.load(exported.path)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in ours.graph.initializer}
    (mine,) = (node for node in ours.graph.node if node.op_type == "MatMulNBits")
    # Their grids, our codes: the same but where a value lies between two codes and they round it up.
    ours_codes, their_codes = (
        unpacked(array.reshape(24, -1), bits, 80)[:, :72] for array in (held[mine.input[1]], codes)
    )
    assert np.abs(ours_codes - their_codes).max() <= 1
    assert (ours_codes != their_codes).mean() < 0.01
    assert np.array_equal(unpacked(held[mine.input[3]], bits, 5), grid.zero_point.numpy())
    # Their file with our codes is our file.
    for tensor in theirs.graph.initializer:
        if tensor.name == product.input[1]:
            tensor.CopyFrom(numpy_helper.from_array(held[mine.input[1]].reshape(codes.shape), tensor.name))
    answers = []
    for model in (theirs, ours):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        answers.append(session.run(None, {"image": inputs.numpy()})[0])
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-5, atol=1e-6)


def unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Codes of rows of bytes, low half first."""
    if bits == 8:
        return packed[:, :count].astype(np.int64)
    return np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)[:, :count].astype(np.int64)


def test_one_weight_that_two_products_read_is_stored_once(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x.flatten(2)).tanh())

    torch.manual_seed(0)
    inputs = torch.rand(2, 3, 8, 8)
    graph = capture(Twice(), inputs)
    sites = weight_only(graph, 4, 16, head=True)
    assert len(sites) == 2
    network = realise(graph, RTN.plan(graph, [inputs], sites, rng=generator(0, "twice")))
    artefact = OnnxRuntime(group_products="float32").compile(network, tmp_path / "model", bits="w4")
    told = OnnxRuntime().open(artefact, threads=1)(inputs)
    torch.testing.assert_close(told, answer(network, inputs), rtol=1e-5, atol=1e-5)


def test_simulated_values_are_those_of_the_codes(graph: Graph, tmp_path: Path) -> None:
    """Codes, scales and zero points of the file give the weight of the simulation to the last bit."""
    network = rounded(graph, 4, 16)
    exported = write_onnx(network, tmp_path / "model.onnx", group_products="float32")
    model = onnx.load(exported.path)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    product = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    codes, scale, zero = (held[name] for name in product.input[1:4])
    values = unpacked(codes.reshape(40, -1), 4, 112).reshape(40, 7, 16)
    weight = ((values - unpacked(zero, 4, 7)[..., None]) * scale[..., None]).reshape(40, -1)[:, :100]
    site = site_of("wide/linear#0", "weight")
    recipe = RTN.plan(graph, [PICTURES], {site: Precision(4, signed=False, group=16)}, rng=generator(0, "groups"))
    (edit,) = recipe.rounds
    plain = dict(graph.module.named_parameters())["inner.wide.weight"]
    assert np.array_equal(weight.astype(np.float32), fake(plain.detach(), edit.grid).numpy())
