"""Letterbox and the map back to the source: a ramp is the oracle, its values say where each pixel came from."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seatrial.core.pipeline import Letterbox, Pipeline, Resize
from seatrial.core.sample import Placement, Sample
from seatrial.data.load import load, placed, resized_size_px

SIDES = st.integers(1, 120)
SIZES = st.tuples(SIDES, SIDES)
LETTERBOXES = st.builds(Letterbox, value=st.integers(0, 255), centered=st.booleans(), keep_ratio=st.booleans())
PIPELINES = st.one_of(
    st.builds(Pipeline, crop_px=SIZES, letterbox=LETTERBOXES),
    st.builds(Pipeline, crop_px=SIZES, resize=st.builds(Resize, short_side_px=SIDES)),
    st.builds(Pipeline, crop_px=SIZES, resize=st.builds(Resize, exact_px=SIZES), odd_margin=st.just("down")),
    st.builds(Pipeline, crop_px=SIZES),
)


def _sample(pixels: np.ndarray) -> Sample:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG", compress_level=1)
    return Sample("x", 0, encoded=written.getvalue())


def _ramp(height: int, width: int) -> np.ndarray:
    """Return a picture whose red counts rows and whose green counts columns."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 255)], axis=2).astype(np.uint8)


@settings(max_examples=200, deadline=None)
@given(source_px=st.tuples(st.integers(8, 200), st.integers(8, 200)), pipeline=PIPELINES)
def test_pixels_stand_where_the_placement_says(source_px: tuple[int, int], pipeline: Pipeline) -> None:
    found = load(pipeline, _sample(_ramp(*source_px)))
    assert found.pixels.shape == (*pipeline.crop_px, 3)
    assert found.source_size_px == source_px
    placement = placed(pipeline, source_px)
    assert found.placement == placement
    filling = 0 if pipeline.letterbox is None else pipeline.letterbox.value
    inside = []
    for axis in range(2):
        centers = (np.arange(pipeline.crop_px[axis]) + 0.5 - placement.offset_px[axis]) / placement.scale[axis] - 0.5
        # A filter mirrors or repeats the border within its reach; beyond the border there is filling.
        reach = 1 + 1 / placement.scale[axis]
        inner = (centers > reach) & (centers < source_px[axis] - 1 - reach)
        of_axis = found.pixels[:, :, axis] if axis == 0 else found.pixels[:, :, axis].T
        other = _covered(placement, source_px, pipeline.crop_px, 1 - axis)
        values = of_axis[inner][:, other].astype(float)
        assert np.abs(values - centers[inner][:, None]).max(initial=0) <= 1.01
        inside.append(_covered(placement, source_px, pipeline.crop_px, axis))
    outside = ~np.outer(inside[0], inside[1])
    assert (found.pixels[outside] == filling).all()
    assert (found.pixels[~outside][:, 2] == 255).all()


def _covered(placement: Placement, source_px: tuple[int, int], crop_px: tuple[int, int], axis: int) -> np.ndarray:
    position = np.arange(crop_px[axis]) + 0.5 - placement.offset_px[axis]
    return (position > 0) & (position < source_px[axis] * placement.scale[axis])


@settings(max_examples=100, deadline=None)
@given(
    source_px=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    pipeline=PIPELINES,
    corners=st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=0, max_size=4),
)
def test_boxes_come_back(
    source_px: tuple[int, int], pipeline: Pipeline, corners: list[tuple[float, float, float, float]]
) -> None:
    placement = placed(pipeline, source_px)
    boxes = np.array(corners, dtype=np.float64).reshape(-1, 4) * np.tile(source_px[::-1], 2)
    kept = boxes.copy()
    there = placement.to_input(boxes)
    np.testing.assert_allclose(placement.to_source(there), boxes, rtol=0, atol=1e-7 * max(source_px))
    np.testing.assert_array_equal(boxes, kept)
    size_px = resized_size_px(pipeline, source_px)
    whole = placement.to_input(np.array([[0.0, 0.0, source_px[1], source_px[0]]]))[0]
    top, left = placement.offset_px
    np.testing.assert_allclose(whole, (left, top, left + size_px[1], top + size_px[0]), atol=1e-6)
    if pipeline.letterbox is not None:
        assert min(whole[0], whole[1]) >= 0
        assert whole[2] <= pipeline.crop_px[1] + 1e-6
        assert whole[3] <= pipeline.crop_px[0] + 1e-6


@settings(max_examples=200, deadline=None)
@given(source_px=st.tuples(st.integers(1, 5000), st.integers(1, 5000)), crop_px=SIZES, centered=st.booleans())
def test_a_letterbox_fills_one_side_and_keeps_the_ratio(
    source_px: tuple[int, int], crop_px: tuple[int, int], centered: bool
) -> None:
    size_px = resized_size_px(Pipeline(crop_px, letterbox=Letterbox(centered=centered)), source_px)
    ratio = min(crop_px[0] / source_px[0], crop_px[1] / source_px[1])
    assert any(side == crop for side, crop in zip(size_px, crop_px))
    for side, crop, source in zip(size_px, crop_px, source_px):
        assert 1 <= side <= crop
        exact = source * ratio
        assert side == 1 or (abs(side - exact) <= 0.5 + 1e-9 if centered else -1e-9 <= exact - side < 1)


@pytest.mark.parametrize(
    ("source_px", "letterbox", "size_px", "offset_px"),
    [
        # YOLOX, data_augment.preproc: r = min(416 / 480, 416 / 640) = 0.65, int(480 r) = 312, corner
        ((480, 640), Letterbox(), (312, 416), (0, 0)),
        ((427, 640), Letterbox(), (277, 416), (0, 0)),  # 277.55
        ((640, 480), Letterbox(), (416, 312), (0, 0)),
        # YOLOv5, augmentations.letterbox: round(427 * 0.65) = 278, top = round(69 - 0.1)
        ((427, 640), Letterbox(centered=True), (278, 416), (69, 0)),
        ((425, 640), Letterbox(centered=True), (276, 416), (70, 0)),
        # 277 of 416 rows leave 139: the odd one below
        ((426, 640), Letterbox(centered=True), (277, 416), (69, 0)),
        ((3, 5000), Letterbox(), (1, 416), (0, 0)),
        ((427, 640), Letterbox(keep_ratio=False), (416, 416), (0, 0)),
        ((100, 100), Letterbox(centered=True), (416, 416), (0, 0)),
    ],
)
def test_sizes_and_offsets_of_yolox_and_yolov5(
    source_px: tuple[int, int], letterbox: Letterbox, size_px: tuple[int, int], offset_px: tuple[int, int]
) -> None:
    pipeline = Pipeline((416, 416), letterbox=letterbox)
    assert resized_size_px(pipeline, source_px) == size_px
    assert placed(pipeline, source_px).offset_px == offset_px


def test_a_letterbox_resizes_with_the_library_and_filter_of_the_pipeline() -> None:
    cv2 = pytest.importorskip("cv2")
    pixels = np.random.default_rng(0).integers(0, 256, (43, 64, 3), dtype=np.uint8)
    how = Resize(short_side_px=999, library="opencv", interpolation="bilinear")
    found = load(Pipeline((32, 32), how, letterbox=Letterbox(value=7)), _sample(pixels)).pixels
    np.testing.assert_array_equal(found[:21], cv2.resize(pixels, (32, 21), interpolation=cv2.INTER_LINEAR))
    assert (found[21:] == 7).all()
