"""Overlap of regions: as scikit-learn's Jaccard index on all pixels at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score

from seatrial.core.sample import Picture, Placement, Sample
from seatrial.core.segmentation import SemanticSegmentation
from seatrial.core.task import Classification
from seatrial.core.truth import IGNORED, ClassMap
from seatrial.errors import BadInput
from seatrial.metrics.of_task import judge_of
from seatrial.metrics.segmentation import region_overlap

SIDE = 12


def judged(truths: np.ndarray, answers: np.ndarray, n_classes: int) -> pa.Table:
    scores = torch.nn.functional.one_hot(torch.from_numpy(answers), n_classes).permute(0, 3, 1, 2).float()
    samples = [Sample(f"s{i:02}", 0, target=ClassMap(truth)) for i, truth in enumerate(truths)]
    picture = Picture(np.zeros((SIDE, SIDE, 3), np.uint8), (SIDE, SIDE), Placement((1.0, 1.0), (0, 0)))
    return SemanticSegmentation().answer(scores, samples, [picture] * len(samples))


def maps(rng: np.random.Generator, count: int, n_classes: int, errors: float) -> tuple[np.ndarray, np.ndarray]:
    truths = rng.integers(0, n_classes, (count, SIDE, SIDE))
    answers = np.where(rng.random(truths.shape) < errors, rng.integers(0, n_classes, truths.shape), truths)
    return np.where(rng.random(truths.shape) < 0.1, IGNORED, truths), answers


@given(st.integers(0, 2**32 - 1), st.integers(2, 7))
@settings(max_examples=30, deadline=None)
def test_the_mean_is_over_classes_of_all_pixels_together(seed: int, n_classes: int) -> None:
    rng = np.random.default_rng(seed)
    truths, answers = maps(rng, 4, n_classes, 0.4)
    unused = n_classes + 1  # a class that is nowhere does not count
    found = region_overlap(judged(truths, answers, unused))
    counted = truths != IGNORED
    each = jaccard_score(truths[counted], answers[counted], labels=range(n_classes), average=None)
    assert found.mean_iou == pytest.approx(each.mean())
    assert found.by_class == pytest.approx(dict(enumerate(each)))
    assert found.pixel_accuracy == pytest.approx(accuracy_score(truths[counted], answers[counted]))


def test_a_case_worked_by_hand() -> None:
    truth, answer = np.zeros((1, SIDE, SIDE), np.int64), np.zeros((1, SIDE, SIDE), np.int64)
    truth[0, :, 6:] = 1
    answer[0, :, 9:] = 1
    # 72 pixels each; 36 of class 1 are found, the other 36 are answered 0: 72/108 and 36/72.
    found = region_overlap(judged(truth, answer, 2))
    assert found.by_class == {0: pytest.approx(2 / 3), 1: pytest.approx(1 / 2)}
    assert (found.mean_iou, found.pixel_accuracy) == (pytest.approx(7 / 12), pytest.approx(0.75))


def test_scores_that_are_no_numbers_count_as_missed() -> None:
    truth = np.zeros((1, SIDE, SIDE), np.int64)
    scores = torch.zeros(1, 2, SIDE, SIDE)
    scores[0, 1, :3] = torch.nan
    picture = Picture(np.zeros((SIDE, SIDE, 3), np.uint8), (SIDE, SIDE), Placement((1.0, 1.0), (0, 0)))
    records = SemanticSegmentation().answer(scores, [Sample("a", 0, target=ClassMap(truth[0]))], [picture])
    assert region_overlap(records).by_class == {0: pytest.approx(0.75)}


def test_intervals_are_those_of_samples_drawn_one_by_one() -> None:
    rng = np.random.default_rng(5)
    truths, answers = maps(rng, 30, 3, 0.3)
    for row in range(0, 30, 3):
        answers[row] = rng.integers(0, 3, (SIDE, SIDE))  # pictures differ
    records = judged(truths, answers, 3)
    judge = judge_of(SemanticSegmentation())
    interval = judge(records).interval(np.random.default_rng(0))
    drawn = []
    for _ in range(300):
        chosen = rng.integers(0, 30, 30)
        counted = truths[chosen] != IGNORED
        drawn.append(jaccard_score(truths[chosen][counted], answers[chosen][counted], average="macro"))
    assert (interval.low, interval.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
    worse = answers.copy()
    worse[:, :3] = 0
    after = judged(truths, worse, 3)
    loss = judge(after.take(np.arange(30)[::-1])).less_interval(judge(records), np.random.default_rng(0))
    assert loss.low < region_overlap(after).mean_iou - region_overlap(records).mean_iou < loss.high < 0


def test_empty_and_mixed_records_are_named() -> None:
    truths, answers = maps(np.random.default_rng(0), 2, 3, 0.3)
    records = judged(truths, answers, 3)
    with pytest.raises(BadInput, match=r"records with \[3, 4\] classes"):
        region_overlap(pa.concat_tables([records, judged(truths, answers, 4)]))
    with pytest.raises(BadInput, match="without a judged pixel"):
        region_overlap(judged(np.full_like(truths, IGNORED), answers, 3))
    with pytest.raises(BadInput, match="without a column 'n_classes'"):
        region_overlap(pa.table({"sample": ["a"]}))


def test_a_judge_compares_what_both_cells_hold() -> None:
    rng = np.random.default_rng(5)
    truths, answers = maps(rng, 8, 3, 0.2)
    worse = np.where(rng.random(answers.shape) < 0.3, 0, answers)
    before, after = judged(truths, answers, 3), judged(truths, worse, 3).slice(2)
    judge = judge_of(SemanticSegmentation())
    clean, noisy = judge(before), judge(after.take([5, 3, 1, 0, 2, 4]))
    assert clean.value() == region_overlap(before).mean_iou
    assert noisy.less(clean) == pytest.approx(region_overlap(after).mean_iou - region_overlap(before.slice(2)).mean_iou)
    among = judge(before.slice(2))
    assert noisy.less_interval(clean, np.random.default_rng(1)) == noisy.less_interval(among, np.random.default_rng(1))
    nothing = judge(judged(np.full((1, SIDE, SIDE), IGNORED), answers[:1], 3))
    with pytest.raises(BadInput, match="without an object or a judged pixel"):
        nothing.value()
    with pytest.raises(BadInput, match="the task Classification"):
        judge_of(Classification())
