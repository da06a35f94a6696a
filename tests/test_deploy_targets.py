"""Targets: what is opened answers as the graph does, foreign files are fed as they want, figures have their shape."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from deploy_graph import float_graph, quantized
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

from seatrial.core.graph import Graph, capture
from seatrial.core.target import Artefact, Target
from seatrial.deploy import operators
from seatrial.deploy.input_adapter import InputAdapter, foreign_artefact
from seatrial.deploy.litert import LiteRt
from seatrial.deploy.machine import cpu_features, this_machine, usable_cores, weight_bits_cap
from seatrial.deploy.onnxruntime import OnnxRuntime, open_session
from seatrial.deploy.openvino import OpenVino, compile_model
from seatrial.deploy.torch_target import Torch
from seatrial.errors import BadInput, NotApplicable
from seatrial.models.artefact import open_artefact
from seatrial.models.port import Port
from seatrial.models.preprocessing import Overrides

PICTURES = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))
NAMES = ("onnxruntime", "openvino", "torch")


def target(name: str) -> Target:
    known = {"onnxruntime": OnnxRuntime, "openvino": OpenVino, "torch": Torch, "litert": LiteRt}
    if not known[name].installed():
        pytest.skip(f"needs the runtime of the target '{name}'")
    return known[name]()


def answer(graph: Graph) -> torch.Tensor:
    with torch.no_grad():
        return graph.module(PICTURES)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def graphs() -> dict[str, Graph]:
    plain = float_graph()
    return {
        "float32": plain,
        "w8a8": quantized(plain, PICTURES, weights=weight_bits_cap()),
        "w4a4": quantized(plain, PICTURES, weights=4, activations=4),
    }


@pytest.fixture(scope="module")
def compiled(graphs: dict[str, Graph], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Artefact]:
    folder = tmp_path_factory.mktemp("artefacts")
    made = {}
    for name in NAMES:
        if not (name == "openvino" and not OpenVino.installed()):
            for bits, graph in graphs.items():
                made[name, bits] = target(name).compile(graph, folder / name / f"net.{bits}", bits=bits)
    return made


@pytest.mark.parametrize("bits", ["float32", "w8a8", "w4a4"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_opened_answers_as_the_graph(
    name: str, bits: str, graphs: dict[str, Graph], compiled: dict[tuple[str, str], Artefact]
) -> None:
    runtime = target(name)
    artefact = compiled[name, bits]
    predictor = runtime.open(artefact, threads=1)
    before = PICTURES.clone()
    answers = predictor(PICTURES)
    assert difference(answers, answer(runtime.simulated(graphs[bits]))) < (1e-3 if bits == "w4a4" else 1e-5)
    assert answers.dtype == torch.float32
    assert not answers.requires_grad
    assert torch.equal(PICTURES, before)
    assert torch.equal(predictor(PICTURES), answers)
    assert difference(predictor(PICTURES[:1]), answers[:1]) < 1e-5
    assert {"logits", "labels"} <= predictor.gives
    assert artefact.path.name == f"net.{bits}.{artefact.format}"
    assert artefact.size_bytes == artefact.path.stat().st_size
    predictor.close()


def test_torch_alone_gives_gradients_and_leaves_its_threads(compiled: dict[tuple[str, str], Artefact]) -> None:
    threads = torch.get_num_threads()
    predictor = target("torch").open(compiled["torch", "w8a8"], threads=threads + 1)
    x = PICTURES.clone().requires_grad_()
    predictor(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert torch.get_num_threads() == threads
    assert "gradients" not in target("onnxruntime").open(compiled["onnxruntime", "w8a8"], threads=1).gives


def test_saved_programs_hold_no_trace_of_this_machine(compiled: dict[tuple[str, str], Artefact]) -> None:
    for (name, bits), artefact in compiled.items():
        data = artefact.path.read_bytes()
        for trace in (Path(__file__).parent, Path(torch.__file__).parent):
            assert str(trace).encode() not in data, (name, bits)


def test_bf16(graphs: dict[str, Graph], tmp_path: Path) -> None:
    with pytest.raises(NotApplicable, match="bf16"):
        target("onnxruntime").compile(graphs["float32"], tmp_path / "x", bits="bf16")
    runtime = target("openvino")
    if "bf16" not in runtime.precisions:
        with pytest.raises(NotApplicable, match="bf16"):
            runtime.compile(graphs["float32"], tmp_path / "x", bits="bf16")
        return
    artefact = runtime.compile(graphs["float32"], tmp_path / "x", bits="bf16")
    assert artefact.settings["hint"] == "bf16"
    off = difference(runtime.open(artefact, threads=1)(PICTURES), answer(graphs["float32"]))
    assert 1e-4 < off < 3e-2  # eight bits of mantissa were really used
    assert OpenVino(hint="bf16").compile(graphs["w8a8"], tmp_path / "y", bits="w8a8").settings["hint"] == "bf16"


def test_openvino_fuses_every_convolution(compiled: dict[tuple[str, str], Artefact]) -> None:
    target("openvino")
    model = compile_model(compiled["openvino", "w8a8"], 1).get_runtime_model()
    kinds = []
    for node in model.get_ordered_ops():
        told = node.get_rt_info()
        if told["layerType"].astype(str) == "Convolution":
            kinds.append(told["runtimePrecision"].astype(str))
    assert len(kinds) == 2
    assert set(kinds) <= {"u8", "i8"}


def test_onnxruntime_rounds_no_weight_by_itself(tmp_path: Path) -> None:
    mixed = quantized(float_graph(), PICTURES, weights=weight_bits_cap(), float_weights=("second",))
    runtime = target("onnxruntime")
    artefact = runtime.compile(mixed, tmp_path / "mixed", bits="w8a8")
    assert artefact.settings["disabled_optimizers"] == "WeightBiasQuantization"
    assert difference(runtime.open(artefact, threads=1)(PICTURES), answer(runtime.simulated(mixed))) < 1e-4
    times = operators.profile(runtime, artefact, threads=1, runs=2)
    kinds = [entry.kind for entry in times]
    assert kinds.count("QLinearConv") == 1  # the rounded one still runs in integers
    assert "Conv" in kinds
    # Without the setting the trap is real: both convolutions run in integers.
    unguarded = Artefact(artefact.path, "onnx", "w8a8", {})
    kinds = [entry.kind for entry in operators.profile(runtime, unguarded, threads=1, runs=2)]
    assert kinds.count("QLinearConv") == 2


def test_waiting_threads_of_onnxruntime_sleep(compiled: dict[tuple[str, str], Artefact]) -> None:
    options = open_session(compiled["onnxruntime", "float32"], 2).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 2


@pytest.mark.parametrize("name", NAMES)
def test_profile_sums_to_one(name: str, compiled: dict[tuple[str, str], Artefact]) -> None:
    runtime = target(name)
    times = operators.profile(runtime, compiled[name, "w8a8"], threads=1, runs=2)
    assert sum(entry.share for entry in times) == pytest.approx(1)
    assert [entry.microseconds for entry in times] == sorted((e.microseconds for e in times), reverse=True)
    assert len({entry.name for entry in times}) == len(times)
    assert any("onv" in entry.kind for entry in times)


def test_profile_of_a_silent_runtime() -> None:
    with pytest.raises(NotApplicable, match="litert"):
        operators.profile(LiteRt(), Artefact(Path("x.tflite"), "tflite", "w8a8", {}), threads=1)


@pytest.mark.parametrize(("name", "file_format"), [("onnxruntime", "tflite"), ("openvino", "pt2"), ("torch", "onnx")])
def test_a_format_that_the_target_cannot_open(name: str, file_format: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=file_format):
        target(name).open(Artefact(tmp_path / f"x.{file_format}", file_format, "float32", {}), threads=1)


def test_litert_opens_tflite_and_writes_nothing(graphs: dict[str, Graph], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="onnx"):
        LiteRt().open(Artefact(tmp_path / "x.onnx", "onnx", "float32", {}), threads=1)
    with pytest.raises(NotApplicable, match="does not write"):
        LiteRt().compile(graphs["float32"], tmp_path / "x", bits="float32")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 4, 4])
    graph = helper.make_graph([helper.make_node("NoSuchOperator", ["x"], ["y"])], "g", [value], [result])
    path = tmp_path / "odd.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    with pytest.raises(BadInput, match=r"odd\.onnx"):
        target(name).open(Artefact(path, "onnx", "float32", {}), threads=1)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An NHWC network with a fixed batch of 2 that returns its input's sums over space."""
    value = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [2, 4, 6, 3])
    result = helper.make_tensor_value_info("sums", TensorProto.FLOAT, [2, 1, 1, 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    node = helper.make_node("ReduceSum", ["pixels", "axes"], ["sums"], keepdims=1)
    model = helper.make_model(
        helper.make_graph([node], "g", [value], [result], [axes]), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 9
    path = tmp_path_factory.mktemp("foreign") / "sums.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_fixed_batch_layout_and_normalization(name: str, foreign: Path) -> None:
    settings = {"layout": "NHWC", "mean": "[0.5, 0.25, 0]", "std": "[0.5, 1, 2]"}
    predictor = target(name).open(Artefact(foreign, "onnx", "float32", settings), threads=1)
    x = torch.rand(5, 3, 4, 6, generator=torch.Generator().manual_seed(2))
    mean, std = torch.tensor([0.5, 0.25, 0]).reshape(1, 3, 1, 1), torch.tensor([0.5, 1, 2]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(predictor(x), ((x - mean) / std).sum((2, 3)), rtol=1e-5, atol=1e-4)
    with pytest.raises(BadInput, match="resize"):
        predictor(torch.rand(1, 3, 5, 6))


def _port(dtype: str, **grid: float) -> Port:
    scale, zero = grid.get("scale"), grid.get("zero_point")
    return Port("x", (1, 8, 8, 3), dtype, scale, None if zero is None else int(zero))


@given(st.lists(st.integers(0, 255), min_size=12, max_size=12))
@pytest.mark.parametrize(
    ("dtype", "settings", "grid", "shift"),
    [
        ("uint8", {"mean": "[0.5]", "std": "[0.5]"}, {"scale": 0.0078125, "zero_point": 128}, 0),
        (
            "int8",
            {"mean": "[0, 0, 0]", "std": f"[{1 / 255}, {1 / 255}, {1 / 255}]"},
            {"scale": 1.0, "zero_point": -128},
            -128,
        ),
        ("int8", {"scale": str(1 / 255), "zero_point": "-128"}, {}, -128),
    ],
)
def test_pixel_inputs_get_the_pixels(
    dtype: str, settings: dict[str, str], grid: dict[str, float], shift: int, pixels: list[int]
) -> None:
    adapter = InputAdapter.of(_port(dtype, **grid), Port("y", (1, 2), "uint8", 0.5, 3), settings)
    array = np.asarray(pixels, np.float32).reshape(1, 3, 2, 2)
    fed = adapter.feed(array / 255)
    assert fed.dtype == dtype
    assert np.array_equal(fed, array.transpose(0, 2, 3, 1) + shift)
    assert np.array_equal(adapter.read(np.array([[3, 7]], np.uint8)), [[0.0, 2.0]])


def test_normalized_integer_inputs_follow_the_formula() -> None:
    settings = {"mean": "[0.5, 0.4, 0.3]", "std": "[0.2, 0.25, 0.3]", "scale": "0.02", "zero_point": "10"}
    adapter = InputAdapter.of(_port("int8"), Port("y", (1, 2), "float32"), settings)
    x = np.random.default_rng(0).random((2, 3, 4, 4), np.float32)
    by_channel = np.array([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1), np.array([0.2, 0.25, 0.3]).reshape(1, 3, 1, 1)
    expected = np.clip(np.rint((x - by_channel[0]) / by_channel[1] / 0.02 + 10), -128, 127).transpose(0, 2, 3, 1)
    assert np.abs(adapter.feed(x) - expected).max() <= 1
    assert (adapter.feed(x) == expected).mean() > 0.99  # float32 against float64: a tie may fall the other way


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "without a scale"),
        ({"scale": "0", "zero_point": "0"}, "scale 0"),
        ({"scale": "nonsense", "zero_point": "0"}, "nonsense"),
        ({"scale": "1", "zero_point": "0", "std": "[0.1, -1, 1]"}, "std"),
        ({"scale": "1", "zero_point": "0", "layout": "HWC"}, "layout 'HWC'"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, str], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        InputAdapter.of(_port("int8"), Port("y", (1, 2), "float32"), settings)


def test_this_machine(tmp_path: Path) -> None:
    machine = this_machine(1)
    assert machine.cores == usable_cores() >= 1
    assert machine.threads == 1
    assert machine.libraries["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert machine.memory_bytes > 1 << 28
    told = tmp_path / "cpuinfo"
    told.write_text("processor : 0\nflags : fpu avx2 avx512_vnni amx_int8 unknown_flag\n", encoding="ascii")
    assert cpu_features(told) == {"avx2", "avx512_vnni", "amx_int8"}
    told.write_text("Features : fp asimd asimddp i8mm\n", encoding="ascii")
    assert cpu_features(told) == {"neon", "dotprod", "i8mm"}
    assert weight_bits_cap() in (7, 8)


@pytest.mark.parametrize("name", ["litert", "openvino"])
def test_published_resnet8(name: str, shared: Path) -> None:
    model = open_artefact(shared / "models/deployed/resnet8_cifar10_int8.tflite", Overrides(), None)
    data = np.load(shared / "cifar10_lossless.npz")
    test = data["split"] == "test"
    x = torch.from_numpy(data["images"][test]).permute(0, 3, 1, 2).float() / 255
    answers = target(name).open(foreign_artefact(model), threads=2)(x).argmax(1).numpy()
    right = int((answers == data["labels"][test]).sum())
    if name == "openvino" and weight_bits_cap() < 8:
        assert right < 220, "without VNNI its kernels saturate; no longer? then say so in docs/decisions/0002"
        return
    # Stated: 85.13 %, 229 of 269, by OpenVINO. Another kernel's rounding may move a picture or two.
    assert abs(right - 229) <= (1 if name == "openvino" else 4)


def test_published_mobilenet(shared: Path) -> None:
    folder = shared / "imagenet_val_800"
    with (folder / "labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:300]
    pictures = [np.asarray(Image.open(folder / row["file"]).convert("RGB"))[1:225, 1:225] for row in rows]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    model = open_artefact(shared / "models/deployed/mobilenet_v2_1.0_224_quant.tflite", Overrides(), None)
    answers = target("openvino").open(foreign_artefact(model), threads=2)(x).argmax(1).numpy()
    right = int((answers - model.labels.background == [int(row["label"]) for row in rows]).sum())
    assert abs(right - 233) <= 3  # stated: 77.67 %, 233 of 300


def test_onnxruntime_rounds_no_activation_by_itself(tmp_path: Path) -> None:
    """Integer weights with float inputs: by default the product would run with 8-bit inputs, and be 1 % off."""
    torch.manual_seed(4)
    x = torch.rand(5, 7, 64)
    graph = capture(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8)), x)
    weights_only = quantized(graph, x, rounded=())
    runtime = target("onnxruntime")
    predictor = runtime.open(runtime.compile(weights_only, tmp_path / "weights", bits="w8a16"), threads=1)
    with torch.no_grad():
        assert difference(predictor(x), weights_only.module(x)) < 1e-5


def test_openvino_is_loaded_without_its_telemetry() -> None:
    target("openvino")
    code = (
        "import sys; from seatrial.deploy.openvino import capabilities; capabilities();"
        "import openvino.tools.ovc.telemetry_utils as used;"
        "assert used.tm.__name__.endswith('telemetry_stub'), used.tm;"
        "assert 'openvino_telemetry' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
