"""Before and after a method: plain rounding with the same options, and channels as its migrations make them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers_graphs import captured, inputs_of

from seatrial.cli.screen import OUT, show_gains
from seatrial.core.chance import generator
from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.recipe import Migrate
from seatrial.core.sites import operators, site_of
from seatrial.jobs import before_after as job
from seatrial.jobs.before_after import before_and_after
from seatrial.jobs.quantized import quantize_graph
from seatrial.jobs.settings import Settings
from seatrial.quant.channel_ranges import ChannelRanges
from seatrial.quant.migrated_ranges import MigratedRanges
from seatrial.quant.nearest import Nearest
from seatrial.testing.affine_outliers import affine_outliers

RULES = PlacementRules("torch", "by-range", operator_outputs=False)
BATCHES = [inputs_of("bert", seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def outliers() -> Graph:
    return affine_outliers(captured("bert"), BATCHES, rng=generator(0, "outliers"))


def told(graph: Graph, method: str, **options: Any) -> dict[str, Any]:
    settings = Settings(method=method, bits="w6a6", **options)
    quantized = quantize_graph(graph, BATCHES, RULES, settings)
    found = before_and_after(graph, BATCHES, RULES, settings, quantized)
    return json.loads(json.dumps(found, allow_nan=False))


@pytest.fixture(scope="module")
def found(outliers: Graph) -> dict[str, Any]:
    return told(outliers, "os-plus")


def test_before_is_what_nearest_gives_with_the_same_options(outliers: Graph, found: dict[str, Any]) -> None:
    options = {"ranges": "minmax", "bias_correction": True}
    for after, given in ((found, {}), (told(outliers, "smooth-quant", **options), options)):
        plain = told(outliers, "nearest", **given)
        assert [row["site"] for row in after["sites"]] == [row["site"] for row in plain["sites"]]
        for name in ("sqnr_db", "reader_sqnr_db"):
            wanted = [row[name] for row in plain["sites"]]
            assert [row[f"{name}_before"] for row in after["sites"]] == wanted
            assert all(row[f"{name}_before"] is None for row in plain["sites"])
        assert plain["channel_ranges"] == []


def test_what_reads_a_migrated_place_gains_what_its_own_ratio_hides(found: dict[str, Any]) -> None:
    read = [row for row in found["sites"] if row["site"].endswith("query/linear#0:input0")]
    assert len(read) == 2
    for row in read:
        assert row["reader_sqnr_db"] > row["reader_sqnr_db_before"] + 15
        assert abs(row["sqnr_db"] - row["sqnr_db_before"]) < 5
    for place in found["channel_ranges"]:
        assert place["before"]["high"] - place["before"]["low"] > 50
        assert place["after"]["high"] - place["after"]["low"] < 5
        assert place["after"]["widest_over_median"] < 2 < 5 < place["before"]["widest_over_median"]


def test_sites_and_places_stand_in_order_of_execution(outliers: Graph, found: dict[str, Any]) -> None:
    order = list(operators(outliers))
    for names in ([row["site"] for row in found["sites"]], [one["place"] for one in found["channel_ranges"]]):
        places = [order.index(name.rpartition(":")[0]) for name in names]
        assert places == sorted(places)
        assert len(names) > 4


def test_every_place_that_is_migrated_is_told(outliers: Graph) -> None:
    settings = Settings(method="os-plus", bits="w6a6")
    quantized = quantize_graph(outliers, BATCHES, RULES, settings)
    edits = {str(edit.producer): edit for edit in quantized.recipe.edits if isinstance(edit, Migrate)}
    found = before_and_after(outliers, BATCHES, RULES, settings, quantized)["channel_ranges"]
    assert sorted(one["place"] for one in found) == sorted(edits)
    for one in found:
        shift, scale = (part.double().numpy() for part in (edits[one["place"]].shift, edits[one["place"]].scale))
        for key in ("lows", "highs"):
            moved = (np.asarray(one["before"][key]) - shift) / scale
            assert one["after"][key] == pytest.approx(moved, abs=1e-3)
        lows, highs = np.asarray(one["after"]["lows"]), np.asarray(one["after"]["highs"])
        assert (one["after"]["low"], one["after"]["high"]) == (lows.min(), highs.max())
        assert (one["channels"], one["channels_per_entry"], len(lows)) == (32, 1, 32)
        widths = highs - lows
        assert one["after"]["widest_channel"] == pytest.approx(int(widths.argmax()), abs=31)
        assert widths[one["after"]["widest_channel"]] == pytest.approx(widths.max(), rel=1e-4)
        assert one["after"]["widest_over_median"] == pytest.approx(widths.max() / np.median(widths), rel=1e-3)


def test_nearest_is_not_planned_twice(outliers: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(bits="w6a6")
    quantized = quantize_graph(outliers, BATCHES, RULES, settings)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("planned again")

    monkeypatch.setattr(Nearest, "plan", refuse)
    assert before_and_after(outliers, BATCHES, RULES, settings, quantized)["channel_ranges"] == []


@pytest.mark.parametrize("method", ["gptq", "outlier-suppression"])
def test_other_methods_are_held_against_nearest_too(outliers: Graph, method: str) -> None:
    found = told(outliers, method)
    assert all(row["reader_sqnr_db_before"] is not None for row in found["sites"])
    assert bool(found["channel_ranges"]) == (method != "gptq")


def test_many_channels_share_entries_that_hold_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = generator(0, "wide")
    low, high = -np.exp(rng.normal(size=2500)), np.exp(rng.normal(size=2500))
    ranges = ChannelRanges(torch.from_numpy(low), torch.from_numpy(high))
    flat = ChannelRanges(torch.zeros(2500), torch.zeros(2500))
    place = MigratedRanges(site_of("a/linear#0", "output"), ranges, flat)
    monkeypatch.setattr(job, "migrated_ranges", lambda *_: [place])
    (found,) = job.channel_range_data(None, None, [])  # pyright: ignore[reportArgumentType]  looked up above
    assert (found["channels"], found["channels_per_entry"], len(found["before"]["lows"])) == (2500, 3, 834)
    for at, (least, most) in enumerate(zip(found["before"]["lows"], found["before"]["highs"], strict=True)):
        assert least == pytest.approx(low[3 * at : 3 * at + 3].min(), rel=1e-5)
        assert most == pytest.approx(high[3 * at : 3 * at + 3].max(), rel=1e-5)
    assert found["before"]["widest_channel"] == int((high - low).argmax())
    assert found["after"]["widest_over_median"] is None  # of channels that never vary


def printed(data: dict[str, Any]) -> str:
    with OUT.capture() as shown:
        show_gains(data)
    return shown.get()


def test_the_command_line_shows_the_worst_sites_and_one_line_of_ranges(outliers: Graph, found: dict[str, Any]) -> None:
    said = printed({**found, "method": "os-plus"})
    rows = [line for line in said.splitlines() if "linear#0" in line]
    levels = {row["site"]: (row["reader_sqnr_db_before"], row["reader_sqnr_db"]) for row in found["sites"]}
    worst = sorted(levels.values(), key=min)[:5]
    assert len(rows) == 5
    for row, (before, after) in zip(rows, worst, strict=True):
        assert f"{before:.1f}" in row
        assert f"{after:.1f}" in row
    (line,) = [line for line in said.splitlines() if line.startswith("At 5 places")]
    widths = [[one[when]["high"] - one[when]["low"] for one in found["channel_ranges"]] for when in ("before", "after")]
    for middle in map(np.median, widths):
        assert f"{middle:.3g}" in line
    assert printed({**told(outliers, "nearest"), "method": "nearest"}) == ""
