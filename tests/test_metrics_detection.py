"""Average precision: by hand, as pycocotools says from its own files, and counted anew by the bootstrap."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from seatrial.core.detection import Detection
from seatrial.core.instance_segmentation import InstanceSegmentation
from seatrial.core.runs import area_px, runs_of
from seatrial.errors import BadInput
from seatrial.metrics.detection import average_precision, matches_of
from seatrial.metrics.of_task import judge_of

SIDE = 120


def record(name: str, found: list[tuple], true: list[tuple]) -> dict[str, object]:
    """Write a record from (box, class, score) of what was found and (box, class) or (box, class, crowd) of what is."""
    return {
        "sample": name,
        "height": SIDE,
        "width": SIDE,
        "boxes": [float(side) for box, *_ in found for side in box],
        "classes": [kind for _, kind, _ in found],
        "scores": [score for *_, score in found],
        "unusable": 0,
        "true_boxes": [float(side) for box, *_ in true for side in box],
        "true_classes": [entry[1] for entry in true],
        "true_crowd": [len(entry) > 2 and entry[2] for entry in true],
        "true_areas": [float((box[2] - box[0]) * (box[3] - box[1])) for box, *_ in true],
    }


def table(*rows: dict[str, object], masks: bool = False) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=(InstanceSegmentation if masks else Detection).SCHEMA)


A, B = (0, 0, 40, 40), (60, 60, 100, 100)


def test_a_case_worked_by_hand() -> None:
    # Class 0 has two objects. Best find right, second wrong, third right with an overlap of 36/40 = 0.90.
    # At 0.50 to 0.90 precision is 1 up to recall 1/2 (51 of 101 points) and 2/3 above (50); at 0.95 it is 1 to 1/2.
    rows = table(
        record("a", [(A, 0, 0.9), ((0, 60, 40, 100), 0, 0.8)], [(A, 0)]),
        record("b", [((60, 60, 100, 96), 0, 0.7)], [(B, 0)]),
    )
    full, cut = (51 + 50 * 2 / 3) / 101, 51 / 101
    found = average_precision(rows)
    assert found.ap == pytest.approx((9 * full + cut) / 10)
    assert found.ap50 == pytest.approx(full)
    assert found.by_class == {0: pytest.approx((9 * full + cut) / 10)}
    assert (found.ap_small, found.ap_large) == (None, None)
    assert found.ap_medium == pytest.approx(found.ap)  # 40 by 40 pixels lie between 32 and 96
    assert found.recall_100 == pytest.approx((9 * 1 + 0.5) / 10)


def test_a_crowd_is_neither_right_nor_wrong() -> None:
    inside = [((i, i, i + 20, i + 20), 0, 0.9 - i / 100) for i in range(4)]
    rows = table(record("a", [*inside, (B, 0, 0.5)], [((0, 0, 60, 60), 0, True), (B, 0)]))
    assert average_precision(rows).ap == pytest.approx(1)
    assert average_precision(table(record("a", inside, [((0, 0, 60, 60), 0, True)]))).ap is None


def random_rows(rng: np.random.Generator, samples: int, *, masks: bool = False, ties: bool = False) -> pa.Table:
    rows = []
    for number in range(samples):
        true = []
        for _ in range(rng.integers(0, 5)):
            near = rng.integers(0, 80, 2)
            true.append(((*near, *(near + rng.integers(5, 40, 2))), int(rng.integers(0, 3)), bool(rng.random() < 0.15)))
        found = []
        for box, kind, _ in true:
            for _ in range(rng.integers(0, 3)):
                moved = np.clip(np.array(box) + rng.integers(-4, 5, 4), 0, SIDE)
                if (moved[2:] > moved[:2]).all():
                    found.append((moved, kind if rng.random() < 0.8 else int(rng.integers(0, 4)), 0.0))
        scores = rng.integers(1, 6, len(found)) / 8 if ties else np.float32(rng.random(len(found)))
        found = [(box, kind, float(score)) for (box, kind, _), score in zip(found, scores)]
        found.sort(key=lambda entry: -entry[2])
        row = record(f"s{number:02}", found, true)
        if masks:
            row["runs"], row["true_runs"] = drawn(found), drawn(true)
            row["true_areas"] = [float(area_px(runs)) for runs in row["true_runs"]]
        rows.append(row)
    return table(*rows, masks=masks)


def drawn(entries: list[tuple]) -> list[np.ndarray]:
    """Draw a triangle in each box."""
    masks = []
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    for (x1, y1, x2, y2), *_ in entries:
        inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2) & ((x - x1) * (y2 - y1) >= (y - y1) * (x2 - x1) * 0.5)
        masks.append(runs_of(inside))
    return masks


def coco_says(rows: pa.Table, folder: Path, kind: str) -> np.ndarray:
    """Judge the same records by pycocotools through its own files."""
    images, annotations, results = [], [], []
    for number, row in enumerate(rows.to_pylist(), start=1):
        images.append({"id": number, "height": SIDE, "width": SIDE, "file_name": row["sample"]})
        for prefix, entries in (("true_", annotations), ("", results)):
            for i, category in enumerate(row[prefix + "classes"]):
                x1, y1, x2, y2 = row[prefix + "boxes"][4 * i : 4 * i + 4]
                entry = {"image_id": number, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                if kind == "segm":
                    counts = {"size": [SIDE, SIDE], "counts": row[prefix + "runs"][i]}
                    packed = coco_mask.frPyObjects(counts, SIDE, SIDE)
                    entry["segmentation"] = {"size": [SIDE, SIDE], "counts": packed["counts"].decode()}
                if prefix:
                    entry |= {"id": len(entries) + 1, "area": row["true_areas"][i]}
                    entry["iscrowd"] = int(row["true_crowd"][i])
                else:
                    entry["score"] = row["scores"][i]
                    if kind == "segm":
                        del entry["bbox"]
                entries.append(entry)
    categories = [{"id": i, "name": str(i)} for i in range(4)]
    for name, content in (
        ("gt.json", {"images": images, "annotations": annotations, "categories": categories, "info": {}}),
        ("dt.json", results),
    ):
        (folder / name).write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "gt.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "dt.json")), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("shape", ["boxes", "masks"])
@pytest.mark.parametrize("seed", range(6))
def test_figures_are_those_of_pycocotools_on_its_own_files(tmp_path: Path, seed: int, shape: str) -> None:
    rows = random_rows(np.random.default_rng(seed), 12, masks=shape == "masks", ties=seed % 2 == 1)
    stats = coco_says(rows, tmp_path, "bbox" if shape == "boxes" else "segm")
    found = average_precision(rows, shape)
    figures = [
        *(found.ap, found.ap50, found.ap75, found.ap_small, found.ap_medium, found.ap_large),
        *(found.recall_1, found.recall_10, found.recall_100),
    ]
    assert [-1 if figure is None else figure for figure in figures] == pytest.approx(stats[:9].tolist(), abs=1e-12)
    assert 0.05 < found.ap < 0.95
    matches = matches_of(rows, shape)
    once = np.ones((1, len(rows)), dtype=np.int64)
    assert matches.average_precision(once)[0] == pytest.approx(found.ap, abs=1e-12)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None)
def test_a_draw_is_the_data_set_with_samples_repeated(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, 5)
    weights = rng.multinomial(5, np.full(5, 0.2), size=3)
    drawn_at_once = matches_of(rows).average_precision(weights)
    for counts, figure in zip(weights, drawn_at_once):
        repeated = rows.take(np.repeat(np.arange(5), counts))
        wanted = average_precision(repeated).ap
        assert np.isnan(figure) if wanted is None else figure == pytest.approx(wanted, abs=1e-12)


def test_intervals_hold_the_figure_and_see_a_loss() -> None:
    rows = random_rows(np.random.default_rng(3), 60)
    found = average_precision(rows).ap
    judge = judge_of(Detection())
    assert judge(rows).value() == pytest.approx(found, abs=1e-12)
    interval = judge(rows).interval(np.random.default_rng(0))
    assert interval.low < found < interval.high
    assert interval == judge(rows).interval(np.random.default_rng(0))
    worse = rows.to_pylist()
    for row in worse[::2]:
        row |= {"boxes": [], "classes": [], "scores": []}
    worse.reverse()  # joined by sample, not by place
    loss = judge(table(*worse)).less_interval(judge(rows), np.random.default_rng(0))
    assert loss.low < average_precision(table(*worse)).ap - found < loss.high < 0
    same = judge(rows).less_interval(judge(rows), np.random.default_rng(0))
    assert (same.low, same.high) == (0, 0)


def test_empty_and_foreign_records_are_named() -> None:
    with pytest.raises(BadInput, match="records without a sample"):
        average_precision(table())
    with pytest.raises(BadInput, match="without a column 'height'"):
        average_precision(pa.table({"sample": ["a"]}))
    with pytest.raises(BadInput, match="without a column 'true_runs'"):
        average_precision(table(record("a", [], [(A, 0)])), "masks")
    nothing = table(record("a", [], []))
    assert average_precision(nothing).ap is None
    with pytest.raises(BadInput, match="without an object"):
        judge_of(Detection())(nothing).interval(np.random.default_rng(0))
    missed = average_precision(table(record("a", [], [(A, 0)])))
    assert (missed.ap, missed.by_class) == (0, {0: 0})
