"""A plotly figure as a fragment of a page: deterministic, without network, colored by the page's style sheet."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.io import to_html

from seatrial.report.markup import escaped

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", sans-serif'
INK, QUIET, GRID = "#4a5560", "#6b7680", "rgba(128,140,150,0.22)"
"""What a chart has before the style sheet recolors it for light, dark and print."""

_SCRIPT = re.compile(r"<script[^>]*>(.*?)</script>", re.DOTALL)


@dataclass(frozen=True)
class Plot:
    """A chart as HTML (its place on the page) and the script that draws it there."""

    html: str
    script: str


def axis(title: str, **settings: object) -> dict[str, object]:
    """Return the look that every axis shares, with a title and what differs."""
    quiet = {"size": 12, "color": QUIET}
    return {
        "title": {"text": title, "font": quiet, "standoff": 10},
        "tickfont": quiet,
        "gridcolor": GRID,
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "fixedrange": True,
        "automargin": True,
        **settings,
    }


def plot(
    traces: Sequence[object],
    *,
    place: str,
    alt: str,
    height_px: int,
    layout: dict[str, object],
) -> Plot:
    """Return traces as a chart in the element with the id `place`, `alt` (plain text) being what it shows.

    Equal arguments give equal bytes. Nothing zooms or pans, so that a finger on a chart scrolls the page.
    """
    look = {
        "template": go.layout.Template(),
        "height": height_px,
        "margin": {"l": 8, "r": 14, "t": 8, "b": 8},
        "font": {"family": FONT, "size": 12, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "dragmode": False,
        "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 12}},
    }
    figure = go.Figure(data=list(traces), layout=go.Layout({**look, **layout}))
    fragment = to_html(
        figure,
        config={"displayModeBar": False, "responsive": False},
        include_plotlyjs=False,
        full_html=False,
        default_height=f"{height_px}px",
        div_id=place,
    )
    script = "".join(_SCRIPT.findall(fragment))
    return Plot(f'<div class="plot" role="img" aria-label="{escaped(alt)}">{_SCRIPT.sub("", fragment)}</div>', script)


def script_hash(script: str) -> str:
    """Return the hash by which a content security policy names an inline script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
