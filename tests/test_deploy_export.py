"""From graph to ONNX: what the file holds, and that both runtimes answer as the graph does."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from deploy_graph import float_graph, quantized
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from torch import nn

from seatrial.core.graph import Graph, capture, copied, finished
from seatrial.deploy.onnx_export import export_onnx, write_onnx
from seatrial.deploy.onnx_lowering import storage_type, to_codes
from seatrial.errors import BadInput, NotApplicable

PICTURES = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def w8a8(folder: Path) -> tuple[Graph, Path]:
    graph = quantized(float_graph(), PICTURES)
    return graph, export_onnx(graph, folder / "w8a8.onnx")


def answer(graph: Graph, pictures: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return graph.module(pictures).numpy()


def reference(path: Path, pictures: torch.Tensor) -> np.ndarray:
    """What the ONNX standard itself says: onnx's reference implementation, no runtime of ours."""
    return np.asarray(ReferenceEvaluator(str(path)).run(None, {"image": pictures.numpy()})[0])


def test_names_and_dynamic_batch(w8a8: tuple[Graph, Path]) -> None:
    model = onnx.load(w8a8[1])
    onnx.checker.check_model(model, full_check=True)
    shape = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert (model.graph.input[0].name, shape) == ("image", ["batch", 3, 12, 12])
    assert [value.name for value in model.graph.output] == ["output"]
    assert {"first/Conv", "second/Conv", "head/Gemm"} <= {node.name for node in model.graph.node}
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


def test_weights_are_integers_and_the_file_is_small(w8a8: tuple[Graph, Path]) -> None:
    model = onnx.load(w8a8[1])
    wide = [entry.name for entry in model.graph.initializer if entry.data_type == onnx.TensorProto.FLOAT]
    assert not [name for name in wide if name.endswith("weight")]
    codes = [entry for entry in model.graph.initializer if entry.name.endswith("weight_codes")]
    assert len(codes) == 3
    assert {entry.data_type for entry in codes} == {onnx.TensorProto.INT8}
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["DequantizeLinear"] == operators["QuantizeLinear"] + 3


def test_equal_biases_are_not_shared(w8a8: tuple[Graph, Path]) -> None:
    convs = [node for node in onnx.load(w8a8[1]).graph.node if node.op_type == "Conv"]
    names = [node.input[2] for node in convs]
    values = {entry.name: onnx.numpy_helper.to_array(entry) for entry in onnx.load(w8a8[1]).graph.initializer}
    assert np.array_equal(values[names[0]], values[names[1]])  # the test's network makes them equal on purpose
    assert len(set(names)) == len(names)


def test_no_trace_of_this_machine(w8a8: tuple[Graph, Path]) -> None:
    data = w8a8[1].read_bytes()
    for trace in (str(Path(__file__).parent), str(Path(torch.__file__).parent), ".py", "stack_trace", "pkg.torch"):
        assert trace.encode() not in data
    assert not onnx.load(w8a8[1]).metadata_props


@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (4, 4), (2, 3), (8, 16), (16, 8)])
def test_the_file_means_what_the_graph_computes(weights: int, activations: int, folder: Path) -> None:
    graph = quantized(float_graph(), PICTURES, weights=weights, activations=activations)
    path = export_onnx(graph, folder / f"w{weights}a{activations}.onnx")
    np.testing.assert_allclose(reference(path, PICTURES), answer(graph, PICTURES), rtol=1e-4, atol=1e-5)


def test_per_channel_activations(folder: Path) -> None:
    graph = quantized(float_graph(), PICTURES, activations=4, activation_axis=1)
    path = export_onnx(graph, folder / "channels.onnx")
    np.testing.assert_allclose(reference(path, PICTURES), answer(graph, PICTURES), rtol=1e-4, atol=1e-5)


def test_narrow_floats(folder: Path) -> None:
    graph = copied(float_graph())
    for node in list(graph.module.graph.nodes):
        if node.name in ("relu", "inner_first_weight"):
            users = list(node.users)
            with graph.module.graph.inserting_after(node):
                narrow = graph.module.graph.call_function(torch.ops.seatrial.narrow_float.default, (node, "fp16"))
            for user in users:
                user.replace_input_with(node, narrow)
    graph = finished(graph)
    path = export_onnx(graph, folder / "narrow.onnx")
    model = onnx.load(path)
    assert Counter(node.op_type for node in model.graph.node)["Cast"] == 3  # one for the stored weight, two for relu
    assert onnx.TensorProto.FLOAT16 in {entry.data_type for entry in model.graph.initializer}
    np.testing.assert_allclose(reference(path, PICTURES), answer(graph, PICTURES), rtol=1e-5, atol=1e-6)
    native = write_onnx(graph, folder / "native.onnx", native_floats=frozenset({"fp16"})).path
    assert not [node for node in onnx.load(native).graph.node if node.op_type == "Cast"]


def test_linear_weights_of_token_models_are_turned_once(folder: Path) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).relu())

    torch.manual_seed(2)
    x = torch.rand(3, 7, 6)
    graph = quantized(capture(Tokens(), x), x)
    path = export_onnx(graph, folder / "tokens.onnx")
    model = onnx.load(path)
    assert "Transpose" not in {node.op_type for node in model.graph.node}
    name = model.graph.input[0].name
    result = np.asarray(ReferenceEvaluator(str(path)).run(None, {name: x.numpy()})[0])
    np.testing.assert_allclose(result, answer(graph, x), rtol=1e-4, atol=1e-5)


class Means(nn.Module):
    """Means over pictures, rows and tokens, and a swish whose output is not rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.mean(3).mean((1, 2), keepdim=True)
        tokens = x.permute(0, 2, 3, 1).mean((1, 2))
        pooled = x.mean((-1, -2), keepdim=True).flatten(1) + x.mean((2, 3)) + tokens + rows.flatten(1)
        return self.head(x.mean((1, 2)) * x.mean((1, 2)).sigmoid()) + pooled.sum(1, keepdim=True)


def test_only_means_over_pictures_become_pools_and_only_for_onnxruntime(folder: Path) -> None:
    graph = capture(Means(), PICTURES)
    plain = write_onnx(graph, folder / "plain.onnx").path
    pooled = write_onnx(graph, folder / "pooled.onnx", for_onnxruntime=True).path
    kinds = [Counter(node.op_type for node in onnx.load(path).graph.node) for path in (plain, pooled)]
    assert kinds[0]["GlobalAveragePool"] == 0
    pools = kinds[1]["GlobalAveragePool"]
    assert pools >= 1
    assert kinds[1]["ReduceMean"] == kinds[0]["ReduceMean"] - pools
    assert kinds[1]["ReduceMean"] >= 3  # over rows, over tokens and over channels with rows
    assert kinds[1]["QuantizeLinear"] == 0  # no swish between two rounds
    found = ReferenceEvaluator(onnx.load(pooled)).run(None, {"image": PICTURES.numpy()})[0]
    np.testing.assert_allclose(found, answer(graph, PICTURES), rtol=1e-4, atol=1e-5)


def test_equal_graphs_give_equal_bytes_in_another_process(w8a8: tuple[Graph, Path], folder: Path) -> None:
    again = folder / "again.onnx"
    script = (
        "import sys, torch; from pathlib import Path; from deploy_graph import float_graph, quantized;"
        "from seatrial.deploy.onnx_export import export_onnx;"
        "x = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(1));"
        "export_onnx(quantized(float_graph(), x), Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(again)],
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"},
    )
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (w8a8[1], again)]
    assert digests[0] == digests[1]


def test_large_models_keep_their_weights_beside(folder: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)

    torch.manual_seed(3)
    x = torch.rand(2, 64)
    graph = capture(Wide(), x)
    path = write_onnx(graph, folder / "wide.onnx", largest_single_file=1000).path
    beside = folder / "wide.onnx.data"
    assert beside.stat().st_size >= 64 * 64 * 4 > path.stat().st_size
    name = onnx.load(path).graph.input[0].name
    result = np.asarray(ReferenceEvaluator(str(path)).run(None, {name: x.numpy()})[0])
    np.testing.assert_allclose(result, answer(graph, x), rtol=1e-5, atol=1e-6)
    write_onnx(graph, path)  # a file that fits again leaves no data behind, which would be counted
    assert not beside.exists()


def test_an_operator_that_onnx_lacks_is_named_with_its_module(folder: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.ReLU(), Odd())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(x)

    graph = capture(Outer(), torch.rand(2, 3, 4, 4))
    with pytest.raises(BadInput, match=r"bessel_j0.*'block\.1'"):
        export_onnx(graph, folder / "odd.onnx")


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16]),
    signed=st.booleans(),
    data=st.data(),
    per_channel=st.booleans(),
)
def test_codes_are_those_of_the_graphs_operator(
    bits: int, signed: bool, data: st.DataObject, per_channel: bool
) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    count = 3 if per_channel else 1
    scales = data.draw(st.lists(st.floats(2.0**-10, 8, width=32), min_size=count, max_size=count))
    zeros = data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))
    steps = data.draw(st.lists(st.integers(-(2**17), 2**17), min_size=12, max_size=12))
    scale, zero = torch.tensor(scales), torch.tensor(zeros)
    # Halves of a step are where rounding modes differ.
    x = torch.tensor(steps, dtype=torch.float32).reshape(3, 4) / 2 * (scale.reshape(-1, 1) if per_channel else scale)
    axis = 0 if per_channel else -1
    grid = (scale, zero) if per_channel else (scale[0], zero[0])
    expected = torch.ops.seatrial.qdq(x, *grid, low, high, axis).numpy()
    codes = to_codes(x.numpy(), grid[0].numpy(), grid[1].numpy(), low, high, axis)
    assert np.array_equal(codes, codes.astype(storage_type(low, high)))
    shape = (3, 1) if per_channel else ()
    values = (codes - grid[1].numpy().reshape(shape).astype(np.float32)) * grid[0].numpy().reshape(shape)
    assert np.array_equal(values.astype(np.float32), expected)


def test_grids_beyond_16_bits_are_refused() -> None:
    assert storage_type(0, 255) is np.uint8
    assert storage_type(-7, 7) is np.int8
    assert storage_type(0, 256) is np.uint16
    with pytest.raises(NotApplicable, match="16 bits"):
        storage_type(0, 2**16)
