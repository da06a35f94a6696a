"""The pages in a real browser without a network: every chart draws, in light and dark, and nothing is asked for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report_compare import sample_comparison
from test_report_page import poisoned
from test_report_sample import sample_extras, sample_result

from seatrial.report.page import render

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
LIGHT, DARK = 1, 0
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--virtual-time-budget=8000",
]


@dataclass
class Drawn:
    """What one chart became: its SVG layers, points, bars, error bars, lines and texts."""

    layers: int = 0
    points: int = 0
    bars: int = 0
    whiskers: int = 0
    lines: int = 0
    width: float = 0.0
    texts: list[str] = field(default_factory=list)


class Dom(HTMLParser):
    """The charts in a serialized document by the ids of their places."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.charts: dict[str, Drawn] = {}
        self.title = ""
        self.sources: list[str] = []
        self._open: list[tuple[str, str, str]] = []
        self.feed(html)
        self.close()

    def _chart(self) -> Drawn | None:
        places = [place for _, _, place in self._open if place]
        return self.charts[places[-1]] if places else None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        kind = (found.get("class") or "").split()
        place = (found.get("id") or "") if "js-plotly-plot" in kind else ""
        if place:
            self.charts[place] = Drawn()
        parents = [name for _, name, _ in self._open]
        self.sources += [found[key] or "" for key in ("src", "href", "xlink:href") if key in found]
        if tag not in {"meta", "img", "br", "link", "input"}:
            self._open.append((tag, found.get("class") or "", place))
        chart = self._chart()
        if chart is None:
            return
        if tag == "svg" and "main-svg" in kind:
            chart.layers += 1
            chart.width = max(chart.width, float(found.get("width") or 0))
        elif tag == "path" and "point" in kind and found.get("d"):
            chart.points += 1
        elif tag == "path" and parents[-1:] == ["point"]:
            chart.bars += 1
        elif tag == "path" and ({"xerror", "yerror"} & set(kind)):
            chart.whiskers += 1
        elif tag == "path" and "js-line" in kind:
            chart.lines += 1

    def handle_endtag(self, tag: str) -> None:
        if any(name == tag for name, _, _ in self._open):
            while self._open.pop()[0] != tag:
                continue

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] == "title":
            self.title += data
        chart = self._chart()
        if chart is not None and any(tag == "text" for tag, _, _ in self._open):
            chart.texts.append(data)


Browse = Callable[..., Path]


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program; without one the tests skip, and fail where SEATRIAL_REQUIRE_BROWSER is 1."""
    asked = os.environ.get("SEATRIAL_CHROMIUM")
    found = shutil.which(asked) if asked else next((p for p in map(shutil.which, NAMES) if p), None)
    if found:
        return found
    why = f"needs Chromium: SEATRIAL_CHROMIUM is '{asked}'" if asked else f"needs Chromium: none of {NAMES} in PATH"
    if os.environ.get("SEATRIAL_REQUIRE_BROWSER") == "1":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture
def browse(chromium: str, tmp_path: Path) -> Browse:
    """Open a page in a new profile and return the folder with `page.html`, `dom.html` or `shot.png`, and `net.json`."""

    def run(html: str, scheme: int, *, shot: tuple[int, int] | None = None) -> Path:
        folder = tmp_path / f"{scheme}-{'shot' if shot else 'dom'}"
        folder.mkdir()
        (folder / "page.html").write_text(html, encoding="utf-8")
        wanted = [f"--screenshot={folder / 'shot.png'}"] if shot else ["--dump-dom"]
        size = shot or (1280, 2000)
        command = [
            chromium,
            *FLAGS,
            f"--user-data-dir={folder / 'profile'}",
            f"--log-net-log={folder / 'net.json'}",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--window-size={size[0]},{size[1]}",
            *wanted,
            (folder / "page.html").as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
        (folder / "dom.html").write_bytes(done.stdout)
        return folder

    return run


def requests(folder: Path) -> list[str]:
    """The addresses that the page set out to fetch; the browser's own errands belong to no page from a file."""
    log = json.loads((folder / "net.json").read_text(encoding="utf-8"))
    started = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [event.get("params", {}) for event in log["events"] if event["type"] == started]
    return [one["url"] for one in asked if str(one.get("network_isolation_key", "")).startswith("file:")]


def drawn(browse: Browse, html: str, scheme: int) -> Dom:
    """Open a page, see that it asks for nothing, and return what it became."""
    folder = browse(html, scheme)
    assert requests(folder) == []
    dom = Dom((folder / "dom.html").read_text(encoding="utf-8"))
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in dom.sources)
    return dom


def test_a_request_would_be_seen(browse: Browse) -> None:
    folder = browse("<img src='https://example.org/x.png'><script>fetch('https://example.net/y')</script>", LIGHT)
    assert requests(folder) == ["https://example.org/x.png", "https://example.net/y"]


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_every_chart_of_a_quick_trial_draws(browse: Browse, scheme: int) -> None:
    result = sample_result()
    charts = drawn(browse, render(result, sample_extras()), scheme).charts
    assert list(charts) == ["chart-latency", "chart-attack", "chart-corruption", "chart-system", "chart-sites"]
    assert all(chart.layers >= 2 and chart.width > 900 for chart in charts.values())
    timed = [variant for variant in result["variants"] if variant["latency_ms"]]
    assert charts["chart-latency"].points == len(timed)
    assert charts["chart-latency"].whiskers == 2 * len(timed)
    assert charts["chart-sites"].bars == 30
    noisy = [variant for variant in result["variants"] if variant["noise"]]
    for family in ("attack", "corruption", "system"):
        cells = [cell for variant in noisy for cell in variant["noise"] if cell["family"] == family]
        done = [cell for cell in cells if cell["status"] == "done"]
        chart = charts[f"chart-{family}"]
        assert chart.whiskers == len(done) + len(noisy)  # the clean figures are a row of their own
        assert chart.points >= len(done) + len(noisy)
    assert "top-1, %" in charts["chart-attack"].texts
    assert any("not applicable" in text for text in charts["chart-attack"].texts)
    assert any("latency, ms, batch 1, 2 threads" in text for text in charts["chart-latency"].texts)


def test_every_chart_of_a_full_trial_draws(browse: Browse) -> None:
    charts = drawn(browse, render(sample_result(full=True), sample_extras()), LIGHT).charts
    curves = [place for place in charts if "-curve-" in place]
    assert len(curves) == 6
    for place in curves:
        points = 5 if "attack" in place else 6
        assert (charts[place].lines, charts[place].points) == (4, 4 * points)
    assert all(chart.layers >= 2 for chart in charts.values())


def test_a_comparison_draws(browse: Browse) -> None:
    html, found = sample_comparison()
    dom = drawn(browse, html, DARK)
    assert dom.charts["chart-differences"].points == len(found["pairs"])
    assert dom.charts["chart-differences"].whiskers == len(found["pairs"])


def test_names_run_nothing(browse: Browse) -> None:
    """The attack would change the title, ask for a picture, or put an element into a chart."""
    attack = "\"'</title></script><script>document.title='broken'</script>"
    attack += (
        "<img src='https://example.org/x.png' onerror=\"document.title='broken'\"><a href='https://example.org'>a</a>"
    )
    extras: dict[str, Any] = {key: part for key, part in sample_extras().items() if key != "paired"}
    dom = drawn(browse, render(poisoned(sample_result(), attack), poisoned(extras, attack)), LIGHT)
    assert dom.title != "broken"
    assert len(dom.charts) == 5
    assert all(chart.layers >= 2 for chart in dom.charts.values())
    shown = " ".join(dom.charts["chart-corruption"].texts)
    assert "gaussian_noise" in shown


@pytest.mark.parametrize(("scheme", "ground"), [(LIGHT, (246, 247, 249)), (DARK, (17, 22, 27))])
def test_the_page_follows_the_system(browse: Browse, scheme: int, ground: tuple[int, int, int]) -> None:
    folder = browse(render(sample_result(), sample_extras()), scheme, shot=(1280, 1800))
    pixels = np.asarray(Image.open(folder / "shot.png").convert("RGB")).astype(int)
    assert pixels.shape[:2] == (1800, 1280)
    assert tuple(pixels[1700, 5]) == ground
    # The marks of the charts are there in color, on either ground.
    blue = np.abs(pixels - np.array([0x1A, 0x7F, 0xC4])).sum(-1) < 12
    assert blue.sum() > 200
