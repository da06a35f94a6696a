"""Checkpoints and deployed files: what fits, and what is refused without running or reading more."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import nn

from seatrial.errors import BadInput
from seatrial.models.artefact import open_artefact
from seatrial.models.checkpoint import fit_weights, load_weights
from seatrial.models.onnx_file import check_onnx
from seatrial.models.preprocessing import Overrides
from seatrial.models.tflite_file import check_tflite


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return open, (str(self.mark), "w")


def test_a_checkpoint_that_runs_code_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"state_dict": {"weight": torch.rand(2)}, "evil": Evil(mark)}, tmp_path / "new.pt")
    torch.save({"evil": Evil(mark)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Evil(mark)))
    for name in ("new.pt", "old.pt", "plain.bin"):
        with pytest.raises(BadInput, match="run code"):
            load_weights(tmp_path / name)
        assert not mark.exists()


@pytest.mark.parametrize("length", [1 << 60, (1 << 64) - 1, 10_000, 0])
def test_a_safetensors_header_of_impossible_length_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(BadInput):
        load_weights(path)


def test_wrapped_checkpoints_give_the_same_tensors(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = module.state_dict()
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    wraps = {
        "plain": state,
        "state_dict": {"state_dict": prefixed, "epoch": 3},
        "model": {"model": {f"_orig_mod.{name}": tensor for name, tensor in prefixed.items()}, "optimizer": {"lr": 1}},
    }
    for name, content in wraps.items():
        torch.save(content, tmp_path / f"{name}.pt")
        assert load_weights(tmp_path / f"{name}.pt").keys() == state.keys()
    save_file({f"model.{name}": tensor for name, tensor in state.items()}, tmp_path / "lightning.safetensors")
    fresh = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    fitted = fit_weights(fresh, load_weights(tmp_path / "lightning.safetensors"))
    for name, tensor in state.items():
        torch.testing.assert_close(fitted.state_dict()[name], tensor, rtol=0, atol=0)
        torch.testing.assert_close(fresh.state_dict()[name], before[name], rtol=0, atol=0)


def test_weights_that_do_not_fit_are_listed() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    state = dict(module.state_dict())
    state["2.extra"] = state.pop("1.bias")
    state["0.weight"] = torch.rand(5, 3)
    with pytest.raises(BadInput) as error:
        fit_weights(module, state)
    for text in ("1 missing (1.bias)", "1 unexpected (2.extra)", "0.weight (5, 3) float32 for (2, 3) float32"):
        assert text in str(error.value)


def test_tied_parameters_may_be_given_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

    state = {name: torch.rand_like(tensor) for name, tensor in Tied().state_dict().items() if name != "second.weight"}
    fitted: Any = fit_weights(Tied(), state)
    assert torch.equal(fitted.second.weight, state["first.weight"])


def _external(tmp_path: Path, location: str, length: int = 16) -> Path:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    onnx.save(helper.make_model(graph), folder / "m.onnx")
    return folder / "m.onnx"


def test_onnx_external_data_stays_inside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "m.onnx.data").write_bytes(bytes(16))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "deep").symlink_to(tmp_path)
    ports = check_onnx(_external(tmp_path, "m.onnx.data"))
    assert [port.name for port in ports.inputs] == ["x"]
    assert ports.inputs[0].shape == (1, 4)
    for location in (
        "../secret",
        str(tmp_path / "secret"),
        "link",
        "deep/secret",
        "..\\secret",
        "",
        "sub/../../secret",
    ):
        with pytest.raises(BadInput, match="external data inside"):
            check_onnx(_external(tmp_path, location))
    with pytest.raises(BadInput, match="missing"):
        check_onnx(_external(tmp_path, "nowhere.bin"))
    with pytest.raises(BadInput, match="which has 16"):
        check_onnx(_external(tmp_path, "m.onnx.data", length=1 << 50))


def test_onnx_external_data_of_a_subgraph_is_seen_too(tmp_path: Path) -> None:
    path = _external(tmp_path, "../secret")
    inner = onnx.load_model(str(path), load_external_data=False).graph
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4])
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    node = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    onnx.save(helper.make_model(helper.make_graph([node], "outer", [condition], [out])), path)
    with pytest.raises(BadInput, match="external data inside"):
        check_onnx(path)


@pytest.mark.parametrize("name", ["a.onnx", "a.tflite"])
def test_garbage_artefacts_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (b"", b"\x00\x00\x00\x00TFL3", b"\xff" * 100, b"\x10\x00\x00\x00TFL3" + b"\xff" * 40, b"text"):
        path.write_bytes(content)
        with pytest.raises(BadInput):
            open_artefact(path, Overrides(), None)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_as_tflite_give_ports_or_bad_input(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.tflite"
    path.write_bytes(b"\x08\x00\x00\x00TFL3" + tail)
    with pytest.raises(BadInput):
        check_tflite(path)
