"""The page of `seatrial quantize`: what it says, that its figures are the result's, that no name breaks out of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report_browser import DARK, LIGHT, Browse, browse, chromium, drawn
from test_report_ohq import Cells
from test_report_page import ATTACKS, Page, closed, poisoned

from seatrial.core.chance import generator
from seatrial.report.markup import plain
from seatrial.report.quantize_page import MOST_CHARTS, gained, narrowed, render_quantize, write_quantize
from seatrial.report.range_chart import range_chart
from seatrial.report.site_course import course_chart, site_changes

__all__ = ["browse", "chromium"]  # fixtures


def sample_quantize(layers: int = 3, channels: int = 48, *, compared: bool = True) -> dict[str, Any]:
    """The result for a made-up transformer, of which one site has no figure."""
    rng = generator(1, "quantize-page", str(layers))

    def level(middle: float) -> float:
        return round(float(rng.normal(middle, 2)), 3)

    names = [f"blocks.{i}.{part}" for i in range(layers) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    sites = []
    for name in names:
        for port in ("input0", "weight"):
            figures = {"sqnr_db": level(33), "reader_sqnr_db": level(35)}
            before = {"sqnr_db_before": level(33), "reader_sqnr_db_before": level(20)}
            held = before if compared else dict.fromkeys(before)
            sites.append({"site": f"{name}/linear#0:{port}", "bits": 8, **figures, **held})
    sites.append({"site": "head/linear#0:weight", "bits": 8, **dict.fromkeys(sites[0].keys() - {"site", "bits"})})

    def ranges(wide: float) -> dict[str, Any]:
        middle = wide * rng.normal(0, 1, channels)
        lows, highs = middle - 1 - rng.random(channels), middle + 1 + rng.random(channels)
        widths = highs - lows
        return {
            "low": float(lows.min()),
            "high": float(highs.max()),
            "widest_channel": int(widths.argmax()),
            "widest_over_median": float(widths.max() / np.median(widths)),
            "lows": lows.tolist(),
            "highs": highs.tolist(),
        }

    places = [
        {
            "place": f"blocks.{i}.norm{n}/layer_norm#0:output",
            "channels": channels,
            "channels_per_entry": 1,
            "before": ranges(30.0 + i),
            "after": ranges(0.1),
        }
        for i in range(layers)
        for n in (1, 2)
    ]
    return {
        "model": {"name": "vit", "source": "timm:vit", "digest": "12ab"},
        "machine": {"cpu": "a CPU", "libraries": {"torch": "2.12.1"}},
        "target": "openvino",
        "method": "os-plus" if compared else "nearest",
        "bits": "w8a8",
        "size_bytes": 5_712_345,
        "latency_ms": {"median": 4.5678, "p10": 4.4, "p90": 4.9, "runs": 40, "batch": 1, "threads": 2},
        "metric": "top1",
        "value": 0.7135,
        "agreement": 0.9822,
        "agreement_simulated": 0.999,
        "sites": sites,
        "channel_ranges": places if compared else [],
        "files": ["/out/model.onnx", "/out/recipe.json"],
        "report": "/out/quantize.html",
        "seconds": 12.3,
        "warnings": ["one thing was done otherwise"],
    }


@pytest.fixture(scope="module")
def html() -> str:
    return render_quantize(sample_quantize())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_it_says_what_came_out(page: Page) -> None:
    result = sample_quantize()
    assert "w8a8 on openvino: top-1 71.4 %" in page.words
    both = [(r["reader_sqnr_db_before"], r["reader_sqnr_db"]) for r in result["sites"] if r["sqnr_db"] is not None]
    gains = [after - before for before, after in both]
    lowest = [min(levels) for levels in zip(*both)]
    assert f"changes by +{np.median(gains):.1f} dB (median of {len(both)} sites)" in page.words
    assert f"The lowest is {lowest[0]:.1f} dB before and {lowest[1]:.1f} dB after." in page.words
    wide = [np.median([p[w]["high"] - p[w]["low"] for p in result["channel_ranges"]]) for w in ("before", "after")]
    assert f"At 6 places (medians) the range of the tensor went from {wide[0]:.0f} to {wide[1]:.2f}" in page.words
    assert "4.57 ms" in page.words
    assert "5.71 MB" in page.words
    assert "one thing was done otherwise" in page.words


def test_the_tables_hold_every_figure(html: str) -> None:
    result, cells = sample_quantize(), [" ".join(cell.split()) for cell in Cells(html).found]
    for row in result["sites"]:
        at = cells.index(row["site"])
        keys = ("reader_sqnr_db_before", "reader_sqnr_db", "sqnr_db_before", "sqnr_db")
        told = ["–" if row[key] is None else f"{row[key]:.1f}" for key in keys]
        assert cells[at + 1 : at + 6] == [str(row["bits"]), *told]
    for place in result["channel_ranges"]:
        at = cells.index(place["place"])
        texts = [text.replace("−", "-").split(" to ") for text in cells[at + 2 : at + 4]]
        for (low, high), when in zip(texts, ("before", "after")):
            assert float(low) == pytest.approx(place[when]["low"], rel=6e-3)
            assert float(high) == pytest.approx(place[when]["high"], rel=6e-3)


def test_it_is_closed_and_linked(page: Page) -> None:
    closed(page)
    assert len(page.ids()) == len(set(page.ids()))
    links = [attrs["href"] or "" for tag, attrs in page.tags if tag == "a"]
    assert len(links) >= 6
    assert all(link[1:] in page.ids() for link in links)
    charts = [attrs for _, attrs in page.tags if attrs.get("class") == "plot"]
    assert len(charts) == 2 + 6
    assert all(attrs["role"] == "img" and len(attrs["aria-label"] or "") > 40 for attrs in charts)


def test_a_method_that_is_held_against_none_has_one_dot_a_site() -> None:
    result = sample_quantize(compared=False)
    page = Page(render_quantize(result))
    closed(page)
    assert "Against nearest" not in page.words
    assert "Channels before and after" not in page.words
    assert "nearest, dB" not in page.words
    assert "readers, dB" in page.words
    assert (gained(site_changes(result["sites"])), narrowed([])) == ("", "")


def test_of_many_places_the_widest_are_drawn() -> None:
    result = sample_quantize(layers=25, channels=4)
    page = Page(render_quantize(result))
    drawn_at = [int(place.rsplit("-", 1)[1]) for place in page.ids() if place.startswith("chart-channels-")]
    assert len(drawn_at) == MOST_CHARTS < len(result["channel_ranges"])
    assert drawn_at == sorted(drawn_at)
    widths = [one["before"]["high"] - one["before"]["low"] for one in result["channel_ranges"]]
    assert min(widths[at] for at in drawn_at) >= max(w for at, w in enumerate(widths) if at not in drawn_at)
    assert f"Drawn are the {MOST_CHARTS} widest of 50 places." in page.words
    assert sum("norm" in cell for cell in Cells(render_quantize(result)).found) == 50


def test_blocks_are_counted_below_the_chart() -> None:
    def ticks(layers: int) -> list[str]:
        chart = course_chart(site_changes(sample_quantize(layers)["sites"]), place="p", what="sites")
        assert chart is not None
        (found,) = re.findall(r'"ticktext":\s*\[(.*?)\]', chart.script)
        return re.findall(r'"(.*?)"', found)

    assert ticks(3) == ["0", "1", "2"]
    assert ticks(48) == [str(4 * i) for i in range(12)]


def test_equal_results_give_equal_bytes(html: str, tmp_path: Path) -> None:
    result = json.loads(json.dumps(sample_quantize()))
    file = write_quantize(result, tmp_path / "new" / "quantize.html")
    assert file.read_bytes() == html.encode()
    assert result == sample_quantize()
    assert [one.name for one in file.parent.iterdir()] == ["quantize.html"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_names_stay_text(attack: str) -> None:
    clean = Page(render_quantize(poisoned(sample_quantize(2), "-x")))
    html = render_quantize(poisoned(sample_quantize(2), attack))
    html.encode("utf-8")
    page = Page(html)
    closed(page)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in clean.tags]
    assert [sorted(attrs) for _, attrs in page.tags] == [sorted(attrs) for _, attrs in clean.tags]
    assert len(page.scripts) == len(clean.scripts)
    shown = " ".join(f"blocks.0.attn.qkv/linear#0:input0{plain(attack)}".split())
    assert shown in page.words
    for script in page.scripts[1:]:  # plotly reads HTML in its labels
        assert not re.search(r"(<|\\u003c)(a href|script|img|svg)", script)


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"sites": [{"site": "a"}], "method": None, "channel_ranges": None, "warnings": None},
        {**sample_quantize(1), "latency_ms": None, "value": None, "agreement": None, "size_bytes": None},
        {**sample_quantize(1), "metric": "perplexity", "value": 9.5, "ratio": {"value": 1.1, "low": 1, "high": 1.2}},
    ],
)
def test_missing_parts_leave_a_page(result: dict[str, Any]) -> None:
    page = Page(render_quantize(result))
    closed(page)
    assert "Quantization error by site" in page.words


def test_a_place_without_channels_has_no_chart() -> None:
    (place, *_) = sample_quantize(1)["channel_ranges"]
    place["after"]["lows"] = []
    assert range_chart(place, place="p") is None


def test_variants_of_a_text_model_stand_in_a_table() -> None:
    ratio = {"value": 1.25, "low": 1.2, "high": 1.3}
    told = {"name": "w8a8", "target": "torch", "size_bytes": 1000, "latency_ms": None, "metric": "perplexity"}
    variants = [{**told, "value": 12.5, "agreement": None, "ratio": ratio}]
    cells = Cells(render_quantize({**sample_quantize(1), "variants": variants})).found
    at = cells.index(" w8a8@torch")
    assert [cell.strip() for cell in cells[at + 1 : at + 5]] == ["1.00 kB", "–", "12.5", "1.2×"]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_every_chart_draws(browse: Browse, scheme: int) -> None:
    result = sample_quantize()
    charts = drawn(browse, render_quantize(result), scheme).charts
    assert list(charts) == ["chart-activations", "chart-weights", *(f"chart-channels-{i}" for i in range(6))]
    for place in ("chart-activations", "chart-weights"):
        assert charts[place].points == 2 * 12
        assert charts[place].lines == 12  # from dot to dot
        assert any("by blocks" in text for text in charts[place].texts)
    assert all(chart.layers >= 2 for chart in charts.values())
