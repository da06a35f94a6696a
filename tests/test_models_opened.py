"""Opening models by name, file and factory: outputs, preprocessing, labels, and what is said when it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import nn

from seatrial.core.pipeline import Resize
from seatrial.core.task import LabelMap
from seatrial.errors import BadInput
from seatrial.models.artefact import ArtefactModel
from seatrial.models.opened import Model, open_model


class Small(nn.Module):
    """A classifier of 32-pixel pictures."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def opened(name: Any, **options: Any) -> Model:
    model = open_model(name, **options)
    assert isinstance(model, Model)
    return model


def artefact(name: Any, **options: Any) -> ArtefactModel:
    model = open_model(name, **options)
    assert isinstance(model, ArtefactModel)
    return model


def test_a_module_is_captured_with_its_normalization_and_left_as_it_was() -> None:
    module = Small().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    model = opened(module, input_size=(32, 32), mean=mean, std=std, classes=["a", "b", "c", "d"])
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    module.eval()
    wanted = module((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    torch.testing.assert_close(model.graph.module(x), wanted)
    assert model.module is module
    assert model.n_outputs == 4
    assert model.labels.names == ("a", "b", "c", "d")
    assert model.picture_pipeline.assumed
    assert not any("normalization" in text for text in model.warnings)


def test_what_is_assumed_is_said() -> None:
    model = opened(Small(), input_size=(32, 32))
    assert model.picture_pipeline.resize == Resize(short_side_px=37, skip_up_to=1.15)
    assert any(text.startswith("normalization assumed: none") for text in model.warnings)
    assert any(text.startswith("preprocessing assumed") for text in model.warnings)
    assert any("input size assumed 224x224" in text for text in opened(Small()).warnings)


def test_the_digest_tells_weights_and_normalization_apart() -> None:
    module = Small()
    one = opened(module, input_size=(32, 32)).digest
    assert one == opened(module, input_size=(32, 32)).digest
    assert one != opened(module, input_size=(32, 32), mean=(0.5, 0.5, 0.5)).digest
    with torch.no_grad():
        module.fc.bias[0] += 1
    assert one != opened(module, input_size=(32, 32)).digest


def test_weights_are_put_into_a_copy(tmp_path: Path) -> None:
    source, target = Small(), Small().eval()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "weights.json").write_text(
        json.dumps({"mean": [0.5] * 3, "std": [0.25] * 3, "labels": ["a", "b", "c", "d"]})
    )
    model = opened(target, weights=tmp_path / "weights.safetensors", input_size=(32, 32))
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model.graph.module(x), source.eval()((x - 0.5) / 0.25))
    assert not torch.equal(target.fc.weight, source.fc.weight)
    assert model.labels.names == ("a", "b", "c", "d")
    with pytest.raises(BadInput, match=r"fc\.weight"):
        opened(Small(5), weights=tmp_path / "weights.safetensors", input_size=(32, 32))


def test_a_pt2_file_takes_weights_and_its_json(tmp_path: Path) -> None:
    module, other = Small().eval(), Small().eval()
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(
        torch.export.export(module, (torch.rand(2, 3, 32, 32),), dynamic_shapes=shapes), tmp_path / "small.pt2"
    )
    (tmp_path / "small.json").write_text(
        json.dumps({"mean": 0.5, "std": 0.5, "resize": 36, "crop": None, "labels": "four, 4 classes: ant bee cat dog"})
    )
    x = torch.rand(5, 3, 32, 32)
    model = opened(tmp_path / "small.pt2")
    torch.testing.assert_close(model.graph.module(x), module((x - 0.5) / 0.5))
    assert model.module is None
    assert model.labels.names == ("ant", "bee", "cat", "dog")
    assert model.picture_pipeline.resize == Resize(short_side_px=36, skip_up_to=1.15)
    assert model.picture_pipeline.crop_px == (32, 32)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    refitted = opened(tmp_path / "small.pt2", weights=tmp_path / "other.safetensors")
    torch.testing.assert_close(refitted.graph.module(x), other((x - 0.5) / 0.5))
    assert refitted.digest != model.digest
    with pytest.raises(BadInput, match="fixed to"):
        opened(tmp_path / "small.pt2", input_size=(64, 64))


def test_a_factory_in_the_current_folder_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seatrial_test_factory.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), "
        "torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\nnumber = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert opened("seatrial_test_factory:make", input_size=(16, 16)).n_outputs == 2
    with pytest.raises(BadInput, match="did you mean 'make'"):
        open_model("seatrial_test_factory:mak")
    with pytest.raises(BadInput, match="gives a int"):
        open_model("seatrial_test_factory:number")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet18", "timm:resnet18"),
        ("timm:resnet81", "did you mean"),
        ("torchvision:resnt18", "'resnet18'"),
        ("tim:resnet18", "'timm:resnet18'"),
        ("weights.pth", "--weights weights.pth"),
        ("no.such.module:make", "cannot be imported"),
        ("hf:./nowhere", "no folder"),
        ("file.pt2", "no file"),
        ("", "unknown model"),
    ],
)
def test_unknown_names_say_what_to_do(name: str, said: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(BadInput, match=said) as error:
        open_model(name)
    assert "\n" not in str(error.value)


def test_a_download_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")

    def offline(*args: object, **options: object) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(BadInput, match=r"cannot be downloaded .*pass --weights FILE or a local file"):
        open_model("timm:resnet18")


def test_timm_by_name_with_random_and_with_given_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = opened("timm:test_resnet", weights="random")
    assert model.digest == opened("timm:test_resnet", weights="random").digest
    assert any("random weights" in text for text in model.warnings)
    assert model.picture_pipeline.crop_px == (160, 160)
    assert model.picture_pipeline.resize == Resize(short_side_px=168)
    assert model.labels.wnids[:2] == ("n01440764", "n01443537")
    torch.manual_seed(3)
    tuned = timm.create_model("test_resnet", num_classes=7).eval()
    torch.save({"state_dict": tuned.state_dict()}, tmp_path / "tuned.pth")
    model = opened("timm:test_resnet", weights=tmp_path / "tuned.pth")
    x = torch.rand(2, 3, 160, 160)
    torch.testing.assert_close(model.graph.module(x), tuned((x - 0.5) / 0.5), rtol=1e-4, atol=1e-5)
    assert model.n_outputs == 7
    assert model.labels == LabelMap()
    assert any("7 classes" in text for text in model.warnings)


def test_timm_transformers_take_another_input_size() -> None:
    pytest.importorskip("timm")
    model = opened("timm:test_vit", weights="random", input_size=(96, 96))
    assert model.graph.input_size_px == (96, 96)
    assert model.picture_pipeline.crop_px == (96, 96)


def test_torchvision_by_name(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    tuned = torchvision.models.get_model("squeezenet1_1", num_classes=5).eval()
    save_file(tuned.state_dict(), tmp_path / "tuned.safetensors")
    model = opened("torchvision:squeezenet1_1", weights=tmp_path / "tuned.safetensors", input_size=(64, 64))
    assert model.n_outputs == 5
    x = torch.rand(2, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(model.graph.module(x), tuned((x - mean) / std), rtol=1e-4, atol=1e-5)
    assert model.picture_pipeline.resize == Resize(short_side_px=73)
    assert any("preprocessing of torchvision" in text for text in model.warnings)


def _saved_onnx(path: Path, shape: list[Any], dtype: int = TensorProto.FLOAT) -> Path:
    x = helper.make_tensor_value_info("x", dtype, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("Softmax", ["flat"], ["y"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y])), path)
    return path


def test_an_onnx_file_is_described_and_not_opened(tmp_path: Path) -> None:
    model = artefact(_saved_onnx(tmp_path / "a.onnx", ["batch", 3, 32, 48]))
    assert (model.layout, model.input_shape, model.input_dtype) == ("NCHW", (None, 3, 32, 48), "float32")
    assert model.pipeline.crop_px == (32, 48)
    assert model.pipeline.assumed
    assert model.probabilities
    (tmp_path / "labels.txt").write_text("background\nant\nbee\n")
    (tmp_path / "preprocessing.json").write_text(json.dumps({"resize": None, "crop": None, "mean": [0, 0, 0]}))
    model = artefact(_saved_onnx(tmp_path / "a.onnx", [1, 32, 32, 3], TensorProto.UINT8))
    assert (model.layout, model.input_dtype, model.input_zero_point) == ("NHWC", "uint8", 0)
    assert model.pipeline.resize is None
    assert model.labels.names == ("ant", "bee")
    assert model.labels.background == 1
    assert any("shifted by one" in text for text in model.warnings)
    for shape in ([1, 4, 32, 32], [1, 3, "h", "w"], [1, 10]):
        with pytest.raises(BadInput):
            open_model(_saved_onnx(tmp_path / "a.onnx", shape))
    with pytest.raises(BadInput, match="--weights"):
        open_model(tmp_path / "a.onnx", weights="random")
