"""The shared trained networks open as their descriptions say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from seatrial.core.pipeline import Resize
from seatrial.errors import BadInput
from seatrial.models.artefact import ArtefactModel
from seatrial.models.opened import Model, open_model


def opened(name: Any, **options: Any) -> Model:
    model = open_model(name, **options)
    assert isinstance(model, Model)
    return model


def artefact(name: Any, **options: Any) -> ArtefactModel:
    model = open_model(name, **options)
    assert isinstance(model, ArtefactModel)
    return model


@pytest.mark.parametrize("name", ["squeezenet1_1_imagenet", "resnet20_cifar10", "vit_cifar10", "mobilenet_v2_imagenet"])
def test_shared_programs_open(shared: Path, name: str) -> None:
    model = opened(shared / "models" / f"{name}.pt2")
    config = json.loads((shared / "models" / f"{name}.json").read_text())
    assert model.graph.input_size_px == tuple(config["input"]["shape"][2:])
    assert model.picture_pipeline.assumed is False
    assert len(model.labels.names) == model.n_outputs
    if "imagenet" in name:
        lines = (shared / "imagenet_synset_words.txt").read_text().splitlines()
        assert model.labels.wnids == tuple(line.split()[0] for line in lines)
        assert model.picture_pipeline.resize == Resize(short_side_px=256, skip_up_to=1.15)


def test_shared_weights_fit_their_program(shared: Path) -> None:
    folder = shared / "models"
    model = opened(folder / "resnet20_cifar10.pt2")
    assert (
        opened(folder / "resnet20_cifar10.pt2", weights=folder / "resnet20_cifar10.safetensors").digest == model.digest
    )
    with pytest.raises(BadInput, match="unexpected"):
        open_model(folder / "resnet20_cifar10.pt2", weights=folder / "resnet56_cifar10.safetensors")


def test_shared_artefacts_are_described_as_their_files_say(shared: Path) -> None:
    folder = shared / "models" / "deployed"
    model = artefact(folder / "mobilenet_v2_1.0_224_quant.tflite")
    assert (model.layout, model.input_dtype, model.input_scale, model.input_zero_point) == (
        "NHWC",
        "uint8",
        1 / 128,
        128,
    )
    assert (model.n_outputs, model.labels.background, len(model.labels.names)) == (1001, 1, 1000)
    assert model.labels.wnids[0] == "n01440764"
    assert model.probabilities
    model = artefact(folder / "resnet8_cifar10_int8.tflite")
    assert (model.input_dtype, model.input_scale, model.input_zero_point) == ("int8", 1.0, -128)
    assert model.labels.names[-1] == "truck"


def test_the_shared_language_model_keeps_its_logits(shared: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = shared / "models" / "stories260k"
    model = opened(f"hf:{folder}")
    network = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(0, 512, (2, 13), generator=torch.Generator().manual_seed(0))
    got = model.graph.module(ids, torch.ones_like(ids))
    torch.testing.assert_close(got, network(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
