"""The page of `seatrial robustness` in a real browser without a network: every chart draws."""

from __future__ import annotations

import pytest
from test_report_browser import DARK, LIGHT, Browse, browse, chromium, drawn
from test_report_robustness_sample import sample_pictures, sample_robustness

from seatrial.report.robustness_page import render_robustness

__all__ = ["browse", "chromium"]  # fixtures

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("full", "scheme"), [(False, DARK), (True, LIGHT)])
def test_every_chart_draws(browse: Browse, full: bool, scheme: int) -> None:
    data = sample_robustness(full=full)
    charts = drawn(browse, render_robustness(data, sample_pictures()), scheme).charts
    assert all(chart.layers >= 2 and chart.width > 250 for chart in charts.values())
    curves = {place: chart for place, chart in charts.items() if place.startswith("curve-")}
    hostile = [cell for cell in data["cells"] if cell["family"] == "attack"]
    assert len(curves) == len({(cell["model"], cell["name"], cell["option"]) for cell in hostile})
    lines = {(c["model"], c["variant"], c["target"], c["name"], c["option"]) for c in hostile}
    assert sum(chart.lines for chart in curves.values()) == len(lines)
    assert sum(chart.points for chart in curves.values()) == len(hostile) + len(lines)  # each line begins at clean
    chains = [chart for place, chart in charts.items() if place.startswith("chain-")]
    assert [chart.bars for chart in chains] == [len(entry["chain"]) for entry in data["summary"]]
    assert all(any(text.startswith("+ decoder") for text in chart.texts) for chart in chains)
