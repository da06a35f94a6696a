"""Deployed files with 8-bit weights on a CPU whose kernels saturate: said, not hidden."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from deploy_graph import float_graph, quantized

from seatrial.deploy.onnx_export import export_onnx
from seatrial.jobs import variants
from seatrial.models.artefact import open_artefact
from seatrial.models.preprocessing import Overrides


@pytest.mark.parametrize(("weights", "widest", "warned"), [(8, 127, True), (7, 63, False)])
def test_eight_bit_weights_are_warned_of(
    weights: int, widest: int, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    model = open_artefact(
        export_onnx(quantized(float_graph(), x, weights=weights), tmp_path / "m.onnx"), Overrides(), None
    )
    assert model.widest_weight == widest
    monkeypatch.setattr(variants, "weight_bits_cap", lambda: 7)
    said = variants.build_artefact(model, "onnxruntime").warnings
    assert bool(said) == warned
    assert all("saturate" in text for text in said)
    monkeypatch.setattr(variants, "weight_bits_cap", lambda: 8)
    assert not variants.build_artefact(model, "onnxruntime").warnings


def test_a_float_file_has_no_weights_to_warn_of(tmp_path: Path) -> None:
    assert open_artefact(export_onnx(float_graph(), tmp_path / "m.onnx"), Overrides(), None).widest_weight == 0


def test_a_published_tflite_file_is_read(shared: Path) -> None:
    found = open_artefact(shared / "models/deployed/resnet8_cifar10_int8.tflite", Overrides(), None)
    assert found.widest_weight == 127
