"""Records of detection: every layout gives the same boxes, back in the source; a record is its own sample's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seatrial.core.detection import Detection, layout_of
from seatrial.core.instance_segmentation import InstanceSegmentation
from seatrial.core.runs import mask_of, runs_of
from seatrial.core.sample import Picture, Placement, Sample
from seatrial.core.task import Classification, LabelMap
from seatrial.core.truth import ClassMap, Objects
from seatrial.errors import BadInput, NotApplicable

INPUT_PX = (64, 96)
NONE = Objects(np.empty((0, 4)), np.empty(0, np.int64), np.empty(0, bool), np.empty(0))


def objects(boxes: list[list[float]], classes: list[int], masks: list[np.ndarray] | None = None) -> Objects:
    corners = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    runs = None if masks is None else tuple(runs_of(mask) for mask in masks)
    return Objects(corners, np.array(classes, dtype=np.int64), np.zeros(len(corners), dtype=bool), areas, runs)


def sample(name: str = "a", target: Objects = NONE) -> Sample:
    return Sample(name, 0, target=target)


def picture(
    source_px: tuple[int, int] = (128, 192), scale: float = 0.5, offset_px: tuple[int, int] = (0, 0)
) -> Picture:
    return Picture(np.zeros((*INPUT_PX, 3), np.uint8), source_px, Placement((scale, scale), offset_px))


def listed(boxes: list[list[float]], scores: list[float], labels: list[int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def test_boxes_go_back_to_the_source_best_first() -> None:
    outputs = [listed([[10, 8, 20, 30], [0, 0, 100, 20], [5, 5, 5, 9]], [0.5, 0.9, 0.8], [1, 3, 2])]
    placed = picture(source_px=(100, 180), offset_px=(4, 2))
    task = Detection(labels=LabelMap(background=1))
    table = task.answer(outputs, [sample(target=objects([[1, 2, 3, 4]], [7]))], [placed])
    assert table.schema == Detection.SCHEMA
    (row,) = table.to_pylist()
    # (x - 2) / 0.5 and (y - 4) / 0.5, cut to 180 by 100; the third has no width.
    assert row["boxes"] == [0, 0, 180, 32, 16, 8, 36, 52]
    assert row["scores"] == pytest.approx([0.9, 0.5])
    assert row["classes"] == [2, 0]
    assert (row["height"], row["width"], row["unusable"]) == (100, 180, 0)
    assert (row["true_boxes"], row["true_classes"], row["true_areas"]) == ([1, 2, 3, 4], [7], [4])


def raw_yolox(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Write boxes (x1, y1, x2, y2) with scores [n, classes] into the first cells of a head of stride 16."""
    columns = INPUT_PX[1] // 16
    raw = np.zeros((INPUT_PX[0] // 16 * columns, 5 + scores.shape[1]), dtype=np.float32)
    for cell, (box, row) in enumerate(zip(boxes, scores)):
        y, x = divmod(cell, columns)
        center, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        raw[cell] = [*(center / 16 - (x, y)), *np.log(size / 16), 0.5, *(row / 0.5)]
    return raw


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_all_layouts_say_the_same(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    near = rng.uniform(0, 40, (count, 2))
    boxes = np.concatenate([near, near + rng.uniform(4, 24, (count, 2))], axis=1).astype(np.float32)
    scores = rng.permutation(count * 4).reshape(count, 4).astype(np.float32) / (count * 8) + np.float32(0.002)
    raw = raw_yolox(boxes, scores)
    centered = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
    ones = np.ones((count, 1), dtype=np.float32)
    given_as = {
        "yolox": torch.from_numpy(raw)[None],
        "yolov5": torch.from_numpy(np.concatenate([centered, ones, scores], axis=1))[None],
        "yolov8": torch.from_numpy(np.concatenate([centered, scores], axis=1).T.copy())[None],
        "arrays": (torch.from_numpy(boxes)[None], torch.from_numpy(scores)[None]),
    }
    found = {
        layout: Detection(layout=layout, strides=(16,), iou_threshold=0.5).answer(outputs, [sample()], [picture()])
        for layout, outputs in given_as.items()
    }
    wanted = found["arrays"].to_pylist()[0]
    assert wanted["classes"]
    for table in found.values():
        (row,) = table.to_pylist()
        assert row["classes"] == wanted["classes"]
        np.testing.assert_allclose(row["boxes"], wanted["boxes"], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(row["scores"], wanted["scores"], rtol=1e-5)
    # Judged again as a finished list, nothing changes.
    boxes_px = torch.tensor(wanted["boxes"]).reshape(1, -1, 4) / 2
    again = (boxes_px, torch.tensor([wanted["scores"]]), torch.tensor([wanted["classes"]]))
    np.testing.assert_allclose(
        Detection(layout="arrays").answer(again, [sample()], [picture()]).to_pylist()[0]["boxes"], wanted["boxes"]
    )


def test_whole_pixels_are_counted_where_the_system_says() -> None:
    boxes = np.array([[8, 8, 27, 27], [20, 8, 39, 27]], dtype=np.float32)  # overlap 7 by 19
    raw = torch.from_numpy(raw_yolox(boxes, np.array([[0.4], [0.3]], dtype=np.float32)))[None]
    task = Detection(layout="yolox", strides=(16,), iou_threshold=0.23)
    rows = [
        replace(task, boxes=boxes).answer(raw, [sample()], [picture()]).to_pylist()[0]
        for boxes in ("as-trained", "decode", "everywhere")
    ]
    assert rows[0]["boxes"] == pytest.approx([16, 16, 54, 54, 40, 16, 78, 54], abs=1e-3)  # overlap 133/589 = 0.226
    assert rows[1]["boxes"] == pytest.approx([16, 16, 52, 52, 40, 16, 76, 52], abs=1e-3)
    assert rows[2] == rows[1]
    # As-trained 7*19/(2*361-133); decoded nearer 6*18/(2*324-108) = 0.2; with whole pixels 7*19/589 again.
    stricter = replace(task, iou_threshold=0.21)
    counts = [
        len(replace(stricter, boxes=boxes).answer(raw, [sample()], [picture()]).to_pylist()[0]["scores"])
        for boxes in ("as-trained", "decode", "everywhere")
    ]
    assert counts == [1, 2, 1]
    for outputs, layout in (
        ([listed([[0, 0, 9, 9]], [0.5], [0])], "listed"),
        ((torch.zeros(1, 2, 4), torch.zeros(1, 2, 3)), "arrays"),
    ):
        with pytest.raises(NotApplicable, match="decodes its boxes by itself"):
            Detection(layout=layout, boxes="decode").answer(outputs, [sample()], [picture()])
        with pytest.raises(NotApplicable, match="decodes its boxes by itself"):
            InstanceSegmentation(detection=Detection(layout=layout)).under("everywhere")
    assert task.under("decode") == replace(task, boxes="decode")
    assert Detection().under("as-trained") == Detection()
    assert Classification().under("as-trained") == Classification()
    with pytest.raises(NotApplicable, match="no boxes are decoded"):
        Classification().under("decode")


def test_layouts_are_told_apart_by_their_shape() -> None:
    cells = 52 * 52 + 26 * 26 + 13 * 13
    given_as = {
        "yolox": torch.zeros(2, cells, 85),
        "yolov5": torch.zeros(2, 3 * cells, 85),
        "yolov8": torch.zeros(2, 84, cells),
        "listed": [listed([], [], [])],
        "arrays": (torch.zeros(1, 5, 4), torch.zeros(1, 5)),
    }
    for layout, outputs in given_as.items():
        assert layout_of(outputs, (416, 416)) == layout
    for outputs in (torch.zeros(1, 1000), torch.zeros(2, cells + 1, 85), [], "boxes"):
        with pytest.raises(BadInput, match="for an input of 416x416 pixels; wanted boxes"):
            layout_of(outputs, (416, 416))


def test_what_is_no_number_is_counted_and_left_out() -> None:
    boxes = [[0, 0, 9, 9], [0, 0, math.nan, 9], [1, 1, 9, 9], [0, 0, math.inf, 1]]
    outputs = [listed(boxes, [0.5, 0.5, math.nan, 0.4], [0, 0, 0, 0])]
    (row,) = Detection().answer(outputs, [sample()], [picture()]).to_pylist()
    assert (row["unusable"], row["classes"]) == (3, [0])
    raw = torch.from_numpy(raw_yolox(np.array([[8, 8, 28, 28.0]]), np.array([[0.4, 0.3]], dtype=np.float32)))[None]
    raw[0, 0, 3] = 1000  # its exponential is infinite
    (row,) = Detection(layout="yolox", strides=(16,)).answer(raw, [sample()], [picture()]).to_pylist()
    assert (row["unusable"], row["classes"]) == (1, [])


def test_at_most_so_many_are_kept_and_none_is_a_record_too() -> None:
    outputs = [listed([[0, 0, 9, 9]] * 5, [0.1, 0.5, 0.3, 0.2, 0.4], [0] * 5), listed([], [], [])]
    rows = Detection(most=2).answer(outputs, [sample("a"), sample("b")], [picture()] * 2).to_pylist()
    assert rows[0]["scores"] == pytest.approx([0.5, 0.4])
    assert (rows[1]["boxes"], rows[1]["true_boxes"]) == ([], [])


@pytest.mark.parametrize(
    ("layout", "outputs", "said"),
    [
        ("listed", torch.zeros(1, 10), r"shape \(1, 10\) for 1 pictures; wanted boxes, scores and labels"),
        ("listed", [{"logits": torch.zeros(3)}], "the entries logits for a picture"),
        ("listed", [], "0 parts for 1 pictures"),
        ("listed", [listed([[0, 0, 1, 1]], [0.5, 0.5], [1])], r"boxes \(1, 4\), scores \(2,\)"),
        ("arrays", torch.zeros(1, 10), r"shape \(1, 10\)"),
        ("arrays", (torch.zeros(2, 3, 4), torch.zeros(2, 3)), "2 parts for 1 pictures"),
        ("yolox", torch.zeros(1, 10), r"shape \(10,\) for a picture"),
        ("yolox", torch.zeros(1, 24, 5), r"shape \(24, 5\)"),
        ("yolox", torch.zeros(1, 25, 7), "25 locations for an input of 64x96 pixels"),
        ("yolov8", [torch.zeros(3)], "1 parts"),
    ],
)
def test_a_detector_without_boxes_is_refused(layout, outputs, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Detection(layout=layout, strides=(16,)).answer(outputs, [sample()], [picture()])


def test_a_sample_without_boxes_is_named() -> None:
    for target in (None, ClassMap(np.zeros((4, 4), dtype=np.int64))):
        with pytest.raises(BadInput, match="sample 'x' without boxes"):
            Detection().answer([listed([], [], [])], [Sample("x", 3, target=target)], [picture()])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_a_record_depends_on_its_own_sample_alone(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.rand(5, 24, 9, generator=generator)
    samples = [sample(str(i), objects([[i, 0, i + 5, 5]], [i])) for i in range(5)]
    pictures = [picture(offset_px=(i, 2 * i)) for i in range(5)]
    task = Detection(layout="yolox", strides=(16,))
    kept = outputs.clone()
    whole = task.answer(outputs, samples, pictures)
    assert torch.equal(outputs, kept)
    strided = task.answer(outputs.transpose(1, 2).contiguous().transpose(1, 2), samples, pictures)
    assert strided.equals(whole)
    for i in range(5):
        assert task.answer(outputs[i : i + 1], [samples[i]], [pictures[i]]).equals(whole.slice(i, 1))


def test_masks_are_drawn_at_the_source_inside_their_boxes() -> None:
    share = torch.zeros(2, 1, *INPUT_PX)
    share[0, 0, 10:20, 12:30] = 1.0
    share[1, 0, :, :] = 0.6
    outputs = [listed([[12, 10, 30, 20], [0, 0, 8, 8]], [0.4, 0.9], [0, 1]) | {"masks": share}]
    true = np.zeros((128, 192), dtype=bool)
    true[20:40, 24:60] = True
    task = InstanceSegmentation()
    table = task.answer(outputs, [sample(target=objects([[24, 20, 60, 40]], [0], [true]))], [picture()])
    assert table.schema == InstanceSegmentation.SCHEMA
    (row,) = table.to_pylist()
    masks = [mask_of(np.array(runs), (128, 192)) for runs in row["runs"]]
    whole = np.zeros((128, 192), dtype=bool)
    whole[:16, :16] = True
    np.testing.assert_array_equal(masks[0], whole)  # best first
    np.testing.assert_array_equal(masks[1], true)
    assert row["true_runs"] == [runs_of(true).tolist()]


def test_masks_that_are_missing_are_named() -> None:
    output = listed([[0, 0, 8, 8]], [0.9], [0])
    with pytest.raises(BadInput, match="no masks; wanted masks"):
        InstanceSegmentation().answer([output], [sample(target=objects([], [], []))], [picture()])
    output["masks"] = torch.zeros(2, 1, 4, 4)
    with pytest.raises(BadInput, match="2 masks for 1 boxes"):
        InstanceSegmentation().answer([output], [sample(target=objects([], [], []))], [picture()])
    output["masks"] = torch.zeros(1, 1, *INPUT_PX)
    with pytest.raises(BadInput, match="sample 'a' without masks"):
        InstanceSegmentation().answer([output], [sample(target=objects([[0, 0, 1, 1]], [0]))], [picture()])
