"""What may be asked of a search over precisions, and which bound a result breaks; no search is run here."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.errors import BadInput, LimitBroken
from seatrial.jobs.ohq_result import broken_bound
from seatrial.jobs.search_settings import SearchSettings

POSITIVE = {
    "time_budget_s": "--time-budget",
    "max_latency_ms": "--max-latency-ms",
    "max_size_mb": "--max-size-mb",
    "max_energy_mj": "--max-energy-mj",
}


def test_nothing_need_be_asked() -> None:
    plain = SearchSettings()
    assert (plain.max_drop, plain.max_latency_ms, plain.max_size_mb, plain.max_energy_mj) == (None,) * 4
    assert SearchSettings(max_drop=0.0).max_drop == 0.0
    assert SearchSettings(max_drop=0.01, max_latency_ms=1e-3, batch=64, sensitivity="direct").batch == 64


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_bounds_are_finite_and_above_zero(name: str, value: float) -> None:
    changed: dict[str, Any] = {name: value}
    with pytest.raises(BadInput, match=f"{POSITIVE[name]} .*more than 0"):
        SearchSettings(**changed)


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        ("--search-batch 0", {"batch": 0}),
        ("--search-batch -4", {"batch": -4}),
        ("--max-drop 1", {"max_drop": 1.0}),
        ("--max-drop -0.1", {"max_drop": -0.1}),
        ("--max-drop nan", {"max_drop": float("nan")}),
        ("--sensitivity hessian", {"sensitivity": "hessian"}),
    ],
)
def test_other_bad_values_name_their_option(option: str, changed: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as told:
        SearchSettings(**changed)
    assert told.value.came == option
    assert "\n" not in str(told.value)


def result(median_ms: float = 2.0, size_bytes: int = 3_000_000, drop: float | None = 0.004) -> dict[str, Any]:
    return {
        "target": "openvino",
        "latency_ms": {"median": median_ms},
        "size_bytes": size_bytes,
        "chosen": {"drop": drop},
    }


def test_no_bound_is_broken_where_none_is_set_or_all_are_kept() -> None:
    assert broken_bound(result(), SearchSettings()) is None
    kept = SearchSettings(max_latency_ms=2.0, max_size_mb=3.0, max_drop=0.004)  # equal is kept
    assert broken_bound(result(), kept) is None
    # Without data to judge on there is no drop to compare.
    assert broken_bound(result(drop=None), SearchSettings(max_drop=0.0)) is None


def test_a_broken_bound_tells_what_was_reached() -> None:
    late = broken_bound(result(median_ms=2.34567), SearchSettings(max_latency_ms=1.5))
    assert isinstance(late, BadInput)
    assert late.came == "--max-latency-ms 1.5"
    assert "2.35" in late.wanted
    assert "openvino" in late.wanted
    large = broken_bound(result(size_bytes=4_560_000), SearchSettings(max_size_mb=4.5))
    assert isinstance(large, BadInput)
    assert large.came == "--max-size-mb 4.5"
    assert "4.56" in large.wanted
    lossy = broken_bound(result(drop=0.0123), SearchSettings(max_drop=0.01))
    assert isinstance(lossy, LimitBroken)
    assert "--max-drop 0.01" in str(lossy)
    assert "0.0123" in str(lossy)


def test_exit_codes_tell_input_from_limits() -> None:
    late = broken_bound(result(), SearchSettings(max_latency_ms=1.0, max_drop=0.0))
    assert isinstance(late, BadInput)  # the bound that no network keeps comes first
    assert late.exit_code == 2
    lossy = broken_bound(result(), SearchSettings(max_latency_ms=9.0, max_drop=0.0))
    assert isinstance(lossy, LimitBroken)
    assert lossy.exit_code == 3


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_bound_is_broken_where_the_figure_is_above_it(ms: float, most_ms: float, drop: float, most: float) -> None:
    told = broken_bound(result(median_ms=ms, drop=drop), SearchSettings(max_latency_ms=most_ms, max_drop=most))
    assert (told is None) == (ms <= most_ms and drop <= most)
