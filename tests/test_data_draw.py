"""Laws of the draws, and the built-in digits with their split."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.core.pipeline import Pipeline
from seatrial.core.sample import Dataset
from seatrial.data.digits import digits_split
from seatrial.data.draw import QUARTER_BELOW, limit, split_calibration
from seatrial.data.files import open_data, open_training_digits
from seatrial.data.image_set import Entry, ImageSet, MemoryContent
from seatrial.data.load import load
from seatrial.errors import BadInput


def _dataset(labels: list[int]) -> ImageSet:
    entries = tuple(Entry(f"{i:05d}", label, MemoryContent(b"%d" % i)) for i, label in enumerate(labels))
    return ImageSet("made", entries, tuple("abcdefghij"), "integers")


LABELS = st.lists(st.integers(0, 9), min_size=1, max_size=60)


@settings(max_examples=100, deadline=None)
@given(labels=LABELS, n=st.integers(1, 70), seed=st.integers(0, 5))
def test_limit_is_balanced_seeded_and_in_order(labels: list[int], n: int, seed: int) -> None:
    dataset = _dataset(labels)
    drawn = limit(dataset, n, seed=seed)
    assert len(drawn) == min(n, len(dataset))
    assert list(drawn.ids) == sorted(set(drawn.ids))
    assert set(drawn.ids) <= set(dataset.ids)
    assert drawn.ids == limit(dataset, n, seed=seed).ids
    has, took = Counter(labels), Counter(drawn.labels)
    most = max(took.values())
    assert all(took[label] >= min(has[label], most - 1) for label in has)


@settings(max_examples=50, deadline=None)
@given(labels=LABELS, n=st.integers(1, 59), seed=st.integers(0, 5))
def test_a_smaller_limit_is_a_part_of_a_larger_one(labels: list[int], n: int, seed: int) -> None:
    dataset = _dataset(labels)
    assert set(limit(dataset, n, seed=seed).ids) <= set(limit(dataset, n + 1, seed=seed).ids)


@settings(max_examples=50, deadline=None)
@given(labels=LABELS, n=st.integers(0, 80), seed=st.integers(0, 5))
def test_calibration_and_evaluation_share_nothing_and_lose_nothing(labels: list[int], n: int, seed: int) -> None:
    dataset = _dataset(labels)
    calibration, evaluation = split_calibration(dataset, n, seed=seed)
    assert len(calibration) == min(n, len(dataset) // 4)
    assert not set(calibration.ids) & set(evaluation.ids)
    assert sorted((*calibration.ids, *evaluation.ids)) == list(dataset.ids)
    again, _ = split_calibration(dataset, n, seed=seed)
    assert again.digest == calibration.digest


def test_the_quarter_holds_below_1024_samples_only() -> None:
    assert len(split_calibration(_dataset([0, 1] * 511), 256, seed=0)[0]) == 255
    large = _dataset([0, 1] * (QUARTER_BELOW // 2))
    assert len(split_calibration(large, 1000, seed=0)[0]) == 1000
    with pytest.raises(BadInput, match="1024 calibration samples of 1024"):
        split_calibration(large, 1024, seed=0)
    with pytest.raises(BadInput):
        split_calibration(large, -1, seed=0)


@pytest.mark.parametrize("n", [0, -3])
def test_a_limit_that_is_not_positive_is_refused(n: int) -> None:
    with pytest.raises(BadInput, match=f"limit of {n}"):
        limit(_dataset([0, 1]), n, seed=0)


def test_seeds_differ_and_a_lost_sample_moves_no_other() -> None:
    dataset = _dataset([0, 1] * 600)
    draws = {split_calibration(dataset, 50, seed=seed)[0].ids for seed in range(5)}
    assert len(draws) == 5
    calibration = split_calibration(dataset, 50, seed=0)[0]
    lost = calibration.ids[7]
    after = split_calibration(dataset.without([lost]), 50, seed=0)[0]
    assert set(calibration.ids) - {lost} <= set(after.ids)


def test_every_sample_is_about_as_likely_to_be_drawn() -> None:
    dataset = _dataset([0, 1] * 20)
    drawn = Counter(name for seed in range(400) for name in split_calibration(dataset, 10, seed=seed)[0].ids)
    # Binomial with n = 400, p = 1/4: mean 100, standard deviation 8.7; 40 samples stay within 4.5 of them.
    assert all(abs(drawn[name] - 100) < 39 for name in dataset.ids)


def test_digits_are_split_once_and_for_all() -> None:
    train, test = digits_split()
    assert isinstance(test, Dataset)
    assert (len(train), len(test)) == (1197, 600)
    assert not set(train.ids) & set(test.ids)
    assert sorted((*train.ids, *test.ids)) == [f"digits/{i:04d}" for i in range(1797)]
    whole = Counter((*train.labels, *test.labels))
    assert all(abs(count - whole[label] / 3) < 2 for label, count in Counter(test.labels).items())
    assert tuple(test.class_names) == tuple("0123456789")
    opened = open_data("digits")
    assert (opened.digest, opened.labels) == (test.digest, test.labels)
    assert open_training_digits().digest == train.digest


def test_digits_look_like_scikit_learns() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    values, labels = datasets.load_digits(return_X_y=True)
    test = digits_split()[1]
    for sample in list(test)[:40]:
        index = int(sample.id.removeprefix("digits/"))
        assert sample.label == labels[index]
        pixels = load(Pipeline((32, 32)), sample).pixels
        blocks = pixels.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3, 4))
        assert np.corrcoef(blocks.ravel(), values[index])[0, 1] > 0.98
        assert sample.encoded is not None
        assert sample.encoded.startswith(b"\xff\xd8")


def test_digits_take_the_labels_of_a_model_with_other_names() -> None:
    names = list("9876543210")
    turned = open_data("digits", class_names=names)
    assert turned.label_rule == "class names"
    assert [9 - label for label in turned.labels] == list(open_data("digits").labels)
    with pytest.raises(BadInput, match="label 7 of '7'"):
        open_data("digits", n_classes=7)
