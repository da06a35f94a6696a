"""Boxes and masks: decoded by hand, suppressed as torchvision does it, run lengths as pycocotools writes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torchvision import ops

from seatrial.core.boxes import MOST_GROWTH, corners, decode_deltas, decode_yolox, overlaps, suppress
from seatrial.core.runs import area_px, mask_of, runs_of
from seatrial.errors import BadInput


def test_deltas_are_decoded_as_by_hand() -> None:
    anchors = np.array([[10, 20, 30, 60]], dtype=np.float32)  # 20 wide, 40 high, center 20, 40
    deltas = np.array([[1, -1, np.log(2) / 0.2, 0]], dtype=np.float32)
    # Center moves by 0.1 * (20, -40) = (2, -4), the width doubles to 40, the height stays.
    boxes = decode_deltas(deltas, anchors, stds=(0.1, 0.1, 0.2, 0.2))
    np.testing.assert_allclose(boxes, [[2, 16, 42, 56]], rtol=1e-6)
    nearer = decode_deltas(deltas, anchors, stds=(0.1, 0.1, 0.2, 0.2), offset_px=1)
    np.testing.assert_allclose(nearer, [[2, 16, 41, 55]], rtol=1e-6)
    moved = decode_deltas(deltas, anchors, means=(0.1, 0, 0, 0), stds=(0.1, 0.1, 0.2, 0.2))
    np.testing.assert_allclose(moved, [[4, 16, 44, 56]], rtol=1e-6)


def test_growth_is_cut_where_detectron_cuts_it() -> None:
    anchors = np.array([[0, 0, 16, 16]], dtype=np.float32)
    boxes = decode_deltas(np.array([[0, 0, 50, MOST_GROWTH]], dtype=np.float32), anchors)
    np.testing.assert_allclose(boxes, [[-492, -492, 508, 508]], rtol=1e-5)  # 1000 pixels around 8


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_deltas_are_decoded_as_torchvision_does(seed: int, count: int) -> None:
    from torchvision.models.detection._utils import BoxCoder

    rng = np.random.default_rng(seed)
    near = rng.uniform(0, 100, (count, 2))
    anchors = np.concatenate([near, near + rng.uniform(1, 80, (count, 2))], axis=1).astype(np.float32)
    deltas = rng.normal(0, 8, (count, 4)).astype(np.float32)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))  # torchvision divides by weights
    wanted = coder.decode_single(torch.from_numpy(deltas), torch.from_numpy(anchors)).numpy()
    found = decode_deltas(deltas, anchors, stds=(0.1, 0.1, 0.2, 0.2))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-2)


def test_yolox_locations_run_along_rows_of_each_grid_in_turn() -> None:
    raw = np.zeros((4 * 8 + 2 * 4, 6), dtype=np.float32)
    raw[9] = [0.5, 0.25, np.log(3), 0, 1, 1]  # grid of stride 8, 8 wide: cell x 1, y 1
    raw[32 + 7] = [-1, 2, 0, np.log(0.5), 1, 1]  # grid of stride 16, 4 wide: cell x 3, y 1
    centers, sizes = decode_yolox(raw, (32, 64), (8, 16))
    boxes = corners(centers, sizes)
    np.testing.assert_allclose(boxes[9], [12 - 12, 10 - 4, 12 + 12, 10 + 4], rtol=1e-6)
    np.testing.assert_allclose(boxes[39], [32 - 8, 48 - 4, 32 + 8, 48 + 4], rtol=1e-6)
    with pytest.raises(BadInput, match="40 locations for an input of 64x64 pixels; wanted 80"):
        decode_yolox(raw, (64, 64), (8, 16))


def some_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    near = rng.integers(0, 30, (count, 2)) + rng.choice([0, 0.5], (count, 2))
    return np.concatenate([near, near + rng.integers(0, 25, (count, 2))], axis=1).astype(np.float32)


@example(36, 18, 0.3, False)  # an overlap of 0.3 in float32, which is above 0.3
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.sampled_from([0.3, 0.5, 0.65]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_doubles_are_suppressed_as_torchvision_does(seed: int, count: int, iou: float, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    boxes, classes = some_boxes(rng, count), rng.integers(0, 3, count)
    scores = (rng.integers(1, 5, count) / 5 if ties else rng.random(count)).astype(np.float32)
    # Class by class: torchvision's `batched_nms` moves boxes apart, which rounds them.
    kept = []
    for kind in range(3):
        rows = np.flatnonzero(classes == kind)
        stay = ops.nms(torch.from_numpy(boxes[rows]), torch.from_numpy(scores[rows]), iou).numpy()
        kept.append(rows[stay])
    wanted = np.concatenate(kept)
    found = suppress(boxes, scores, classes, iou=iou, most=100)
    assert sorted(found.tolist()) == sorted(wanted.tolist())
    assert (np.diff(scores[found]) <= 0).all()
    few = suppress(boxes, scores, classes, iou=iou, most=3)
    assert few.tolist() == found[:3].tolist()


def test_whole_pixels_make_overlaps_larger() -> None:
    box, other = np.array([0, 0, 9, 9], dtype=np.float32), np.array([[5, 0, 14, 9]], dtype=np.float32)
    assert overlaps(box, other) == pytest.approx(36 / 126)
    assert overlaps(box, other, offset_px=1) == pytest.approx(50 / 150)  # columns 5 to 9 of 0 to 9 and 5 to 14
    pair = np.stack([box, other[0]])
    scores, classes = np.array([0.9, 0.8], dtype=np.float32), np.zeros(2, dtype=np.int64)
    assert suppress(pair, scores, classes, iou=0.3, most=9).tolist() == [0, 1]
    assert suppress(pair, scores, classes, iou=0.3, most=9, offset_px=1).tolist() == [0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.sampled_from([0, 0.1, 0.5, 0.9, 1]))
@settings(max_examples=60, deadline=None)
def test_run_lengths_are_those_of_pycocotools(seed: int, height: int, width: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    runs = runs_of(mask)
    np.testing.assert_array_equal(mask_of(runs, mask.shape), mask)
    packed = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    assert packed == coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert area_px(runs) == mask.sum() == coco_mask.area(packed)


def test_run_lengths_of_a_small_mask() -> None:
    mask = np.array([[0, 1], [1, 1], [1, 0]], dtype=bool)
    assert runs_of(mask).tolist() == [1, 4, 1]
    assert runs_of(~mask).tolist() == [0, 1, 4, 1]
    with pytest.raises(ValueError, match="runs over 6 pixels for a picture of 3x3"):
        mask_of(runs_of(mask), (3, 3))
