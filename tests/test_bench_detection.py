"""Detection in a sweep: box offsets move the answers, not the outputs, and attacks on classes do not apply."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from seatrial.bench.plan import Plan, Subject
from seatrial.bench.store import Entry, Store
from seatrial.bench.sweep import sweep
from seatrial.core.detection import Detection
from seatrial.core.pipeline import Pipeline, Resize
from seatrial.core.predictor import Gift, Inputs, Predictor
from seatrial.data.task_files import open_task_data
from seatrial.jobs.noises import parse_noise
from seatrial.metrics.detection import average_precision

EDGE = 64


class Corner(Predictor):
    """Sees two boxes at fixed places; the second overlaps the first by little more than half."""

    def __init__(self, reach: float = 20.0) -> None:
        self.reach = reach

    @property
    def gives(self) -> frozenset[Gift]:
        return frozenset({"logits"})

    def __call__(self, inputs: Inputs) -> Any:
        assert isinstance(inputs, Tensor)
        entries = torch.tensor([[20.0, 20, self.reach, 20, 0.9, 0.1], [26.0, 20, self.reach, 20, 0.8, 0.1]])
        return entries.T.expand(len(inputs), -1, -1)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Entry]:
    root = tmp_path_factory.mktemp("objects")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    for name in "ab":
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (EDGE, EDGE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        (root / "labels" / f"{name}.txt").write_text("0 0.3125 0.3125 0.3125 0.3125\n")
    data = open_task_data(root, "detection", class_names=["thing", "other"])
    noises = ("box_offset:decode", "box_offset:everywhere", "fgsm:linf:2/255", "square:linf:2/255:5")
    plan = Plan(
        model="corner",
        dataset=data,
        pipeline=Pipeline((EDGE, EDGE), Resize()),
        task=Detection(layout="yolov8", iou_threshold=0.53),
        noises=tuple(parse_noise(text) for text in noises),
        batch=1,
    )
    store = Store(root / "store")
    sweep(lambda: [Subject("corner", "here", Corner(), "corner")], plan, store)
    found = {
        "clean" if e.cell.noise is None else str(e.cell.noise.option or e.cell.noise.name): e for e in store.cells()
    }
    return {name: store.read(entry.cell) for name, entry in found.items()}


def test_a_box_offset_moves_the_boxes_of_the_records(cells: dict[str, Entry]) -> None:
    clean, decode = cells["clean"], cells["decode"]
    assert [cells[name].status for name in ("clean", "decode", "everywhere")] == ["done"] * 3
    before, after = (np.array(entry.table.column("boxes")[0].as_py()).reshape(-1, 4) for entry in (clean, decode))
    # A far corner one pixel nearer, in pictures that are not resized.
    assert np.allclose(after[0] - before[0], [0, 0, -1, -1])
    assert not np.any(decode.table.column("output_difference"))
    assert all(decode.table.column("answer_moved").to_pylist())


def test_overlaps_count_whole_pixels_everywhere(cells: dict[str, Entry]) -> None:
    # 14 of 26 columns are 0.538 of both; (13 + 1) of 26 as well, and 13 of 25 with a pixel fewer are 0.52.
    kept = {name: len(cells[name].table.column("scores")[0]) for name in ("clean", "decode", "everywhere")}
    assert kept == {"clean": 1, "decode": 2, "everywhere": 1}


def test_attacks_on_classes_do_not_apply(cells: dict[str, Entry]) -> None:
    assert cells["square"].status == "not-applicable"
    assert "Detection has none" in str(cells["square"].reason)
    assert cells["fgsm"].status == "not-applicable"


def test_a_moved_corner_costs_precision(cells: dict[str, Entry]) -> None:
    clean, moved = (average_precision(cells[name].table) for name in ("clean", "decode"))
    assert moved.ap < clean.ap
