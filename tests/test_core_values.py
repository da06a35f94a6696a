"""Plain values of the core: randomness, bit-widths, questions and the records of a classification."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.core.cell import Cell, digest, question
from seatrial.core.chance import generator
from seatrial.core.precision import INTEGER_BITS, Bits
from seatrial.core.sample import Sample
from seatrial.core.task import Classification, LabelMap
from seatrial.errors import BadInput


def test_a_stream_is_the_same_everywhere_and_forever() -> None:
    # Golden values: a change would change every stored result.
    assert generator(0, "pgd", "img-1").integers(0, 2**32, 4).tolist() == GOLDEN_STREAM
    assert generator(7).integers(0, 2**32, 2).tolist() == GOLDEN_SEVEN


GOLDEN_STREAM = [4276536513, 2870173149, 314894572, 3097892001]
GOLDEN_SEVEN = [1896813335, 1586686361]


def test_streams_of_different_names_are_independent() -> None:
    names = [
        (seed, noise, severity, sample) for seed in (0, 1) for noise in "ab" for severity in (1, 2) for sample in "xy"
    ]
    streams = np.stack([generator(*name).standard_normal(2000) for name in names])
    correlations = np.corrcoef(streams)[np.triu_indices(len(names), 1)]
    # 120 pairs of 2000 draws: five standard deviations of a correlation are 5 / sqrt(2000).
    assert np.abs(correlations).max() < 5 / math.sqrt(2000)
    assert len({stream[0] for stream in streams}) == len(names)


def test_a_stream_does_not_depend_on_what_was_drawn_before() -> None:
    first = generator(3, "a").random(5)
    np.random.default_rng(0).random(100)
    generator(3, "b").random(7)
    assert np.array_equal(generator(3, "a").random(5), first)


@given(st.sampled_from(INTEGER_BITS), st.sampled_from(INTEGER_BITS))
def test_bits_read_what_they_print(weights: int, activations: int) -> None:
    bits = Bits(weights, activations)
    assert Bits.parse(str(bits)) == bits
    assert Bits.parse(f" {str(bits).upper()} ") == bits


@pytest.mark.parametrize(
    "text",
    [
        "",
        "w1a1",
        "w8",
        "a8",
        "8",
        "w8a",
        "w0a8",
        "w9a8",
        "w8a17",
        "w32a32",
        "w-8a8",
        "w8a8 b",
        "w08a8x",
        "int8",
        "w\N{FULLWIDTH DIGIT EIGHT}a8",
        "w" + "9" * 5000 + "a8",
    ],
)
def test_other_bit_widths_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="wNaM"):
        Bits.parse(text)


def test_the_key_of_a_cell_is_the_hash_of_its_question_alone() -> None:
    asked = question(model="net", seed=0, data=digest(b"abc"), noise={"name": "pgd", "epsilon": "2/255"})
    assert asked == question(noise={"epsilon": "2/255", "name": "pgd"}, data=digest("abc"), seed=0, model="net")
    # Golden values: a change would make every stored cell a stranger.
    assert asked == ('{"data":"' + GOLDEN_DIGEST + '","model":"net","noise":{"epsilon":"2/255","name":"pgd"},"seed":0}')
    assert Cell("w8a8", "torch", None, asked).key == GOLDEN_KEY
    assert Cell("float", "openvino", None, asked).key == GOLDEN_KEY


GOLDEN_DIGEST = "10366aba46518e2b9d040dde242bbc5a"
GOLDEN_KEY = "9aaf55be2481c95a8699109b60352e3a"


def test_digests_know_where_a_part_ends() -> None:
    assert digest(b"ab", b"c") != digest(b"a", b"bc")
    assert digest("é") == digest("é".encode())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes"])
def test_questions_hold_only_what_json_can(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        question(value=value)


def labelled(ids: Iterable[str], labels: Iterable[int]) -> list[Sample]:
    return [Sample(name, label) for name, label in zip(ids, labels, strict=True)]


def by_hand(scores: list[float], label: int, probabilities: bool) -> tuple[int, bool, bool, float, float]:
    """Answer one sample in plain Python."""
    answer = max(range(len(scores)), key=lambda i: (scores[i], -i))
    weights = scores if probabilities else [math.exp(score - max(scores)) for score in scores]
    others = [score for i, score in enumerate(scores) if i != label]
    better = sum(score > scores[label] for score in others)
    confidence = weights[answer] / max(sum(weights), 1e-30)
    return answer, answer == label, better < 5, confidence, scores[label] - max(others)


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(2, 12), st.integers(0, 2), st.booleans(), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_records_are_those_of_plain_python(
    seed: int, batch: int, classes: int, background: int, probabilities: bool, ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, (batch, classes)) if ties else rng.normal(0, 4, (batch, classes))
    scores = np.asarray(np.exp(scores) if probabilities else scores, dtype=np.float32)
    cut = rng.normal(100, 1, (batch, background)).astype(np.float32)  # would win if it were not cut off
    outputs = torch.from_numpy(np.concatenate([cut, scores], 1))
    labels = rng.integers(0, classes, batch).tolist()
    ids = [f"s{i}" for i in range(batch)]
    task = Classification(LabelMap(background=background), probabilities=probabilities)
    table = task.answer(outputs, labelled(ids, labels), ())
    assert table.schema == Classification.SCHEMA
    for row, values, label, name in zip(table.to_pylist(), scores.tolist(), labels, ids, strict=True):
        answer, correct, top5, confidence, margin = by_hand(values, label, probabilities)
        assert (row["sample"], row["label"], row["answer"]) == (name, label, answer)
        assert (row["correct"], row["in_top5"]) == (correct, top5)
        assert row["confidence"] == pytest.approx(confidence, rel=1e-4)
        assert row["margin"] == pytest.approx(margin, rel=1e-4, abs=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(0, 1))
@settings(max_examples=20, deadline=None)
def test_a_record_depends_on_its_own_sample_alone(seed: int, background: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(17, 1001, generator=generator) * 5
    labels = torch.randint(0, 1000, (17,), generator=generator).tolist()
    ids = [str(i) for i in range(17)]
    task = Classification(LabelMap(background=background))
    samples = labelled(ids, labels)
    whole = task.answer(outputs, samples, ())
    order = torch.randperm(17, generator=generator).tolist()
    shuffled = task.answer(outputs[order], [samples[i] for i in order], ())
    transposed = task.answer(outputs.T.contiguous().T, samples, ())  # other strides, equal values
    assert transposed.equals(whole)
    for position, i in enumerate(order):
        alone = task.answer(outputs[i : i + 1], [samples[i]], ())
        assert alone.equals(whole.slice(i, 1))
        assert shuffled.slice(position, 1).equals(whole.slice(i, 1))


def test_a_score_that_is_no_number_is_never_right() -> None:
    outputs = torch.tensor([[float("nan"), 1.0], [float("nan"), float("nan")], [3.0, 1.0]])
    rows = Classification().answer(outputs, labelled("abc", [1, 0, 0]), ()).to_pylist()
    assert [row["correct"] for row in rows] == [False, False, True]
    assert [row["in_top5"] for row in rows] == [False, False, True]
    assert [row["confidence"] for row in rows][:2] == [0, 0]
    assert [row["margin"] for row in rows][:2] == [-math.inf, -math.inf]


def test_outputs_are_not_changed_and_bad_ones_are_refused() -> None:
    outputs = torch.randn(2, 3, requires_grad=True)
    kept = outputs.detach().clone()
    Classification().answer(outputs, labelled("ab", [0, 1]), ())
    assert torch.equal(outputs.detach(), kept)
    for labels in ([0, 3], [-1, 0]):
        with pytest.raises(BadInput, match=f"label {max(labels, key=abs)}"):
            Classification().answer(outputs, labelled("ab", labels), ())
    with pytest.raises(BadInput, match="pass a classifier"):
        Classification().answer(torch.zeros(2, 3, 4), labelled("ab", [0, 1]), ())
