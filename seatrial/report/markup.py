"""Untrusted text made harmless: for HTML, for the texts of charts, and as tables and lists."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
MOST_CHARACTERS = 2000


def plain(value: object, most: int = MOST_CHARACTERS) -> str:
    """Return any value as printable text of at most `most` characters: no control or direction marks, no surrogates."""
    if isinstance(value, Mapping | list | tuple):
        value = json.dumps(value, ensure_ascii=False, default=str)
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value))
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def escaped(value: object, most: int = MOST_CHARACTERS) -> str:
    """Return text for HTML, inside elements and quoted attributes."""
    return html.escape(plain(value, most), quote=True)


def chart_text(value: object, most: int = 80) -> str:
    """Return text for plotly, which reads a subset of HTML in every label."""
    return html.escape(plain(value, most), quote=False).replace("\n", " ")


def shortened(text: str, most: int) -> str:
    """Return text of at most `most` characters with its middle left out; beginnings and ends of site names differ."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return text[:head] + "\N{HORIZONTAL ELLIPSIS}" + text[len(text) - (most - 1 - head) :]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str, numeric: Iterable[int] = ()) -> str:
    """Return an HTML table whose first column names its rows.

    `rows` hold HTML; `heads` and `caption` are plain text. Below 640 px each row becomes a card (the style sheet reads
    `data-label`), so roles are written out: a changed `display` would take them away.
    """
    right = frozenset(numeric)

    def cell(i: int, content: str) -> str:
        kind = ' class="num"' if i in right else ""
        if i == 0:
            return f'<th scope="row" role="rowheader">{content}</th>'
        return f'<td role="cell" data-label="{escaped(heads[i])}"{kind}>{content}</td>'

    head = "".join(
        f'<th scope="col" role="columnheader"{" class=num" if i in right else ""}>{escaped(text)}</th>'
        for i, text in enumerate(heads)
    )
    body = "".join(f'<tr role="row">{"".join(cell(i, c) for i, c in enumerate(row))}</tr>' for row in rows)
    return (
        f'<div class="scroll"><table role="table"><caption>{escaped(caption)}</caption>'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead><tbody role="rowgroup">{body}</tbody></table></div>'
    )


def pairs(values: Mapping[str, object]) -> str:
    """Return a mapping as an HTML description list; empty values are shown as a dash, nested ones as JSON."""
    rows = "".join(
        f"<div><dt>{escaped(key, 120)}</dt><dd>{escaped(worded(value))}</dd></div>" for key, value in values.items()
    )
    return f'<dl class="pairs">{rows}</dl>'


def worded(value: object) -> str:
    """Return a setting as text: lists with commas, absent and empty ones as a dash, the rest as it prints."""
    if value is None or (isinstance(value, str | Mapping | list | tuple) and not value):
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple) and all(isinstance(part, str | int | float) for part in value):
        return ", ".join(str(part) for part in value)
    return plain(value)


def bullets(items: Iterable[object], empty: str) -> str:
    """Return items as an HTML list, `empty` as a sentence where there is none."""
    rows = "".join(f"<li>{escaped(worded(item))}</li>" for item in items)
    return f"<ul>{rows}</ul>" if rows else f'<p class="quiet">{escaped(empty)}</p>'


def details(summary: str, content: str) -> str:
    """Return HTML that is folded away under a line of plain text."""
    return f"<details><summary>{escaped(summary)}</summary>{content}</details>"
