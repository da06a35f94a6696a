"""Detectors and segmenters under noise in one call: the figures are those of the records that the sweep stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bright_squares import bright_square, square_folder
from torch import Tensor, nn

import seatrial
from seatrial.bench.store import Store
from seatrial.core.detection import Detection
from seatrial.core.instance_segmentation import InstanceSegmentation
from seatrial.core.pipeline import Letterbox, Pipeline, Resize
from seatrial.core.segmentation import SemanticSegmentation
from seatrial.core.task import Classification, LabelMap, Task
from seatrial.errors import BadInput
from seatrial.metrics.detection import average_precision
from seatrial.metrics.segmentation import region_overlap
from seatrial.models.eager_detector import EagerDetector, OpenedDetector
from seatrial.models.opened import open_model

PIPELINE = Pipeline((32, 48), Resize(), letterbox=Letterbox())


class Bright(nn.Module):
    """Scores of two classes: pixels above 0.55 are of class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, 2, 1)
        with torch.no_grad():
            self.score.weight.copy_(torch.tensor([-1.0, 1.0])[:, None, None, None].expand(2, 3, 1, 1))
            self.score.bias.copy_(torch.tensor([1.65, -1.65]))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.score(pictures)


class Counting:
    """The detector of bright squares, and how often it was asked."""

    def __init__(self) -> None:
        self.batches = 0

    def __call__(self, pictures: list[Tensor]) -> list[dict[str, Tensor]]:
        self.batches += 1
        return bright_square(pictures)


def detector(detect: Any = bright_square) -> OpenedDetector:
    return OpenedDetector("squares", "squares", EagerDetector(detect), LabelMap(), True, "digest")


def asked(folder: Path, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "model": detector(),
        "data": folder,
        "task": Detection(),
        "pipeline": PIPELINE,
        "system": "decoder:opencv,resize:opencv-area,resize:pillow-nearest,letterbox:255,ceil_mode:ceil",
        "corruptions": "brightness:5",
        "n_classes": 1,
        "out": folder.parent / "out",
        "threads": 1,
    }
    return seatrial.task_robustness(**(given | options))


@pytest.mark.parametrize(("task", "shape"), [(Detection(), "boxes"), (InstanceSegmentation(), "masks")])
def test_figures_are_those_of_the_stored_records(tmp_path: Path, task: Task, shape: Any) -> None:
    result = asked(square_folder(tmp_path / "squares"), task=task)
    store = Store(Path(result["store"]))
    tables = {entry.cell.noise: store.read(entry.cell) for entry in store.cells()}
    clean = average_precision(tables.pop(None).table, shape).ap
    by_name = {(cell["name"], cell["option"], cell["severity"]): cell for cell in result["cells"]}
    assert len(by_name) == 6
    for spec, entry in tables.items():
        cell = by_name.get((spec.name, spec.option, spec.severity))
        if cell is None or entry.status != "done":
            continue  # a step of the chain
        value = average_precision(entry.table, shape).ap
        assert cell["value"] == value
        assert cell["clean"] == clean
        assert cell["difference"] == pytest.approx(value - clean, abs=1e-12)
        assert cell["low"] <= value <= cell["high"]
        assert cell["difference_low"] <= cell["difference"] <= cell["difference_high"]
    if shape == "boxes":  # a bright bar beside the picture is found as well; masks end with the picture
        assert by_name["letterbox", "255", None]["value"] < clean
    assert by_name["decoder", "opencv", None]["status"] == "no-noise"
    assert by_name["ceil_mode", "ceil", None]["status"] == "not-applicable"
    (summary,) = result["summary"]
    assert summary["clean"] == clean
    assert {drop["noise"] for drop in summary["system"]} == {"resize", "letterbox"}
    assert [step["noise"] for step in summary["chain"]] == ["resize", "letterbox"]
    assert summary["combined_drop"] == summary["chain"][-1]["drop"]
    bounds = summary["intervals"]["combined_drop"]
    assert bounds["low"] <= summary["combined_drop"] <= bounds["high"]
    assert json.loads((tmp_path / "out" / "robustness.json").read_text()) == result


def test_a_finished_run_is_not_asked_again(tmp_path: Path) -> None:
    folder, counting = square_folder(tmp_path / "squares"), Counting()
    first = asked(folder, model=detector(counting))
    batches = counting.batches
    second = asked(folder, model=detector(counting))
    assert counting.batches == batches > 0
    assert first["cells"] == second["cells"]
    assert first["summary"] == second["summary"]


def test_a_segmenter_is_judged_as_it_is_deployed(tmp_path: Path) -> None:
    folder = square_folder(tmp_path / "squares")
    model = open_model(Bright(), input_size=(32, 48), mean=(0, 0, 0), std=(1, 1, 1))
    result = asked(
        folder,
        model=model,
        task=SemanticSegmentation(),
        n_classes=2,
        system="resize:pillow-nearest,precision:fp16",
        target="onnxruntime",
        bits="w8a8",
        calibration=str(folder),
    )
    labels = [(entry["variant"], entry["target"]) for entry in result["summary"]]
    assert labels == [("float", "torch"), ("float", "onnxruntime"), ("w8a8", "torch"), ("w8a8", "onnxruntime")]
    store = Store(Path(result["store"]))
    clean = next(e for e in store.cells() if e.cell.noise is None and (e.cell.variant, e.cell.target) == labels[0])
    value = region_overlap(store.read(clean.cell).table).mean_iou
    assert value > 0.9
    assert [entry["clean"] for entry in result["summary"]] == pytest.approx([value] * 4, abs=0.02)
    assert {cell["metric"] for cell in result["cells"]} == {"mean IoU"}


def test_yolox_holds_the_figures_of_a_sweep_by_hand(tmp_path: Path, shared: Path) -> None:
    result = asked(
        shared / "coco8" / "images" / "val",
        model=shared / "models" / "yolox_nano_coco.pt2",
        task=Detection(layout="yolox"),
        pipeline=None,
        n_classes=80,
        system="box_offset:decode",
        corruptions="none",
        target="torch",
        out=tmp_path,
    )
    (cell,) = result["cells"]
    assert 0.3 < cell["clean"] < 0.8
    assert -0.05 < cell["difference"] < 0  # a pixel fewer on boxes of hundreds


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"task": Classification()}, "classifiers go through"),
        ({"pipeline": None}, "no pipeline for 'squares'"),
        ({"model": "network.tflite"}, "network.tflite"),
        ({"system": "decoder:libav"}, "unknown decoder 'libav'"),
        ({"corruptions": "fog:9"}, "severity 9"),
        ({"system": "pgd:linf:2/255"}, "give it to --attacks"),
        ({"data": "/nowhere"}, "/nowhere"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_it_starts(tmp_path: Path, options: Any, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        asked(square_folder(tmp_path / "squares"), **options)
    assert not (tmp_path / "out").exists()
