"""The page around a report: one HTML file with its styles and scripts inside, which nothing on it can leave."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files

from plotly.offline import get_plotlyjs

from seatrial.report.markup import escaped
from seatrial.report.plot import script_hash


@cache
def _asset(name: str) -> str:
    return files("seatrial.report").joinpath(name).read_text(encoding="utf-8")


def frame(*, title: str, body: str, scripts: Sequence[str], sections: Sequence[tuple[str, str]]) -> str:
    """Return the whole page: `title` is plain text, `body` HTML, `scripts` what draws the charts.

    `sections` are the entries (id, text) of the navigation. The content security policy allows the scripts of this
    page by their hashes and no request at all, so a script that slipped in through a name would not run.
    """
    own = escaped(version("seatrial"))
    library = [get_plotlyjs()] if scripts else []
    every = [*library, *scripts, _asset("page.js")]
    allowed = " ".join(f"'{script_hash(script)}'" for script in every)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "font-src data:; base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<a href="#{escaped(place)}">{escaped(text)}</a>' for place, text in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta name="generator" content="seatrial {own}">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n<body>\n"
        f'<nav aria-label="Sections"><div>{links}'
        '<button type="button" id="theme" hidden>theme: system</button></div></nav>\n'
        f"<main>\n{body}\n</main>\n"
        f"<footer>Written by seatrial {own}.</footer>\n"
        + "".join(f"<script>{script}</script>\n" for script in every)
        + "</body>\n</html>\n"
    )
