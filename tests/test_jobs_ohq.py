"""What may be asked of a search over precisions, which bound a result breaks, and two whole searches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import seatrial
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


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("ohq")
    found = seatrial.quantize(
        "digits-cnn",
        method="ohq",
        target="onnxruntime",
        time_budget_s=20.0,
        limit=60,
        calibration_samples=16,
        threads=1,
        out=folder,
    )
    return found, folder


def test_a_search_writes_what_it_delivers(searched: tuple[dict[str, Any], Path]) -> None:
    found, folder = searched
    written = ("model.onnx", "run.py", "quantize.json", "latency.parquet", "search.html")
    for name in (*written, "models/measurements.jsonl"):
        assert (folder / name).stat().st_size > 0
    assert json.loads((folder / "quantize.json").read_text(encoding="utf-8")) == found
    assert all(Path(file).exists() for file in found["files"])
    table = pq.read_table(folder / "latency.parquet").to_pylist()
    assert {row["group"] for row in table} == {group["name"] for group in found["groups"]}


def test_a_search_is_held_against_the_uniform_precisions(searched: tuple[dict[str, Any], Path]) -> None:
    found, _ = searched
    chosen = found["chosen"]
    assert [baseline["name"] for baseline in found["baselines"]] == ["float32", "w8a8"]
    assert chosen["is_uniform"] or chosen["ratio_vs_best_uniform"]["high"] < 1
    if chosen["is_uniform"]:
        assert chosen["ratio_vs_best_uniform"]["value"] == 1
        assert any("is kept" in text for text in found["warnings"])
    assert found["agreement"] is not None
    assert found["value"] == chosen["value"]
    assert found["search"]["measured"] == len(found["search"]["steps"]) >= 2


def test_the_documented_keys_of_a_search_are_there(searched: tuple[dict[str, Any], Path]) -> None:
    found, _ = searched
    page = (Path(__file__).resolve().parents[1] / "docs" / "json.md").read_text(encoding="utf-8")
    section = page.split("\n## quantize\n")[1].split("\n## ")[0]
    assert [key for key in found if f"`{key}`" not in section] == []


def test_a_modeled_chip_is_marked_and_keeps_its_bound(tmp_path: Path) -> None:
    found = seatrial.quantize(
        "digits-cnn",
        method="ohq",
        target="systolic",
        time_budget_s=8.0,
        limit=60,
        calibration_samples=16,
        threads=1,
        max_drop=0.05,
        out=tmp_path,
    )
    assert "systolic" in found["simulated"]
    assert found["latency_ms"]["p10"] == found["latency_ms"]["p90"]
    assert found["chosen"]["drop"] <= 0.05
    precisions = {precision for group in found["groups"] for precision in group["latency_ms"]}
    assert precisions == {"w8a8", "w4a4", "w2a2", "float"}
