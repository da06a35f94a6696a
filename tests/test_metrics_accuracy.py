"""Shares over records against counting by hand, in any order of the rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.core.task import Classification
from seatrial.errors import BadInput
from seatrial.metrics import accuracy
from seatrial.metrics.joining import joined

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=1, max_size=30)


def records(rows: list[tuple[int, int, bool]], ids: list[str] | None = None) -> pa.Table:
    """Records of (label, answer, in_top5); ids are s0, s1, ... unless they are given."""
    count = len(rows)
    columns = {
        "sample": ids if ids is not None else [f"s{i}" for i in range(count)],
        "label": [label for label, _, _ in rows],
        "answer": [answer for _, answer, _ in rows],
        "correct": [label == answer for label, answer, _ in rows],
        "in_top5": [label == answer or also for label, answer, also in rows],
        "confidence": [0.5] * count,
        "margin": [0.0] * count,
    }
    return pa.table(columns, schema=Classification.SCHEMA)


@given(ROWS)
def test_shares_are_counts(rows: list[tuple[int, int, bool]]) -> None:
    table = records(rows)
    right = sum(label == answer for label, answer, _ in rows)
    assert accuracy.top1(table) == right / len(rows)
    assert accuracy.top1(table) <= accuracy.top5(table) <= 1


@given(ROWS, ROWS, st.randoms(use_true_random=False))
def test_tables_are_joined_by_sample_whatever_their_order(
    first: list[tuple[int, int, bool]], second: list[tuple[int, int, bool]], random: object
) -> None:
    a, b = records(first), records(second)
    order = list(range(len(second)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shared = min(len(first), len(second))
    wanted = sum(first[i][1] == second[i][1] for i in range(shared)) / shared
    assert accuracy.agreement(a, b) == wanted
    assert accuracy.agreement(a, b.take(order)) == wanted
    assert accuracy.agreement(b.take(order), a) == wanted
    left, right = joined(a, b.take(order))
    assert a["sample"].take(left).to_pylist() == b.take(order)["sample"].take(right).to_pylist()


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_robustness_counts_clean_correct_samples(flags: list[tuple[bool, bool, bool]]) -> None:
    tables = [records([(1, int(flag[k]), False) for flag in flags]) for k in range(3)]
    clean, one, two = tables[0], tables[1], tables[2].take(list(reversed(range(len(flags)))))
    kept = [flag for flag in flags if flag[0]]
    assert accuracy.robust_accuracy(clean, one) == sum(flag[1] for flag in kept) / len(flags)
    if not kept:
        with pytest.raises(BadInput, match="at least one sample"):
            accuracy.adversarial_robustness(clean, one)
        return
    ar = accuracy.adversarial_robustness(clean, one)
    worst = accuracy.worst_case_robustness(clean, [one, two])
    assert ar == sum(flag[1] for flag in kept) / len(kept)
    assert worst == sum(flag[1] and flag[2] for flag in kept) / len(kept)
    assert worst <= min(ar, accuracy.adversarial_robustness(clean, two))
    assert accuracy.robust_accuracy(clean, one) == pytest.approx(ar * len(kept) / len(flags))


def test_an_attack_may_cover_more_samples_than_the_clean_records_but_not_fewer() -> None:
    clean = records([(1, 1, False), (2, 2, False), (3, 0, False)])
    attacked = records([(1, 1, False), (2, 0, False), (3, 0, False), (0, 0, False)])
    assert accuracy.adversarial_robustness(clean, attacked) == 0.5
    with pytest.raises(BadInput, match="1 clean-correct samples without a noisy record"):
        accuracy.adversarial_robustness(clean, attacked.slice(0, 1))


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (records([(0, 0, False)] * 2, ["a", "a"]), records([(0, 0, False)], ["a"]), "'a' stands 2 times"),
        (records([(0, 0, False)], ["a"]), records([(0, 0, False)], ["b"]), "without a sample in common"),
        (records([(0, 0, False)]).drop_columns("sample"), records([(0, 0, False)]), "without a column 'sample'"),
        (records([(0, 0, False)], ["a"]), pa.table({"sample": [None], "answer": [1]}), "1 empty entries"),
    ],
)
def test_tables_that_cannot_be_joined_are_refused(first: pa.Table, second: pa.Table, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        accuracy.agreement(first, second)


def test_no_sample_has_no_accuracy() -> None:
    with pytest.raises(BadInput, match="at least one sample"):
        accuracy.top1(records([]))
    with pytest.raises(BadInput, match="at least one sample"):
        accuracy.robust_accuracy(records([]), records([]))


def test_chunked_tables_count_the_same() -> None:
    rng = np.random.default_rng(0)
    rows = [(int(a), int(b), False) for a, b in rng.integers(0, 3, (50, 2))]
    table = records(rows)
    chunked = pa.concat_tables([table.slice(0, 7), table.slice(7)])
    assert accuracy.top1(chunked) == accuracy.top1(table)
    assert accuracy.agreement(chunked, table) == 1
