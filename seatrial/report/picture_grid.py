"""What each noise does to one picture, and what the variants answer."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from seatrial.report.markup import escaped, plain

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_BYTES = 4_000_000
ANSWER = "_answer"


def png_bytes(content: object) -> bytes | None:
    """Return the PNG given as bytes or base64 text; None for anything else, and for more than 4 MB."""
    if isinstance(content, str):
        if len(content) > MOST_BYTES * 2:
            return None
        try:
            content = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            return None
    if isinstance(content, bytes) and content.startswith(SIGNATURE) and len(content) <= MOST_BYTES:
        return content
    return None


def picture_grid(pictures: Sequence[Mapping[str, Any]]) -> str:
    """Return the pictures as HTML with their answers: every key `NAME_answer` is the answer of a variant NAME.

    A picture that is no PNG is replaced by words that say so.
    """
    cards = []
    for row in pictures:
        noise = plain(row.get("noise") or "clean", 60)
        chosen = [plain(row[key], 60) for key in ("option",) if row.get(key)]
        severity = row.get("severity")
        if severity is not None:
            chosen.append(f"severity {severity}" if isinstance(severity, int) else f"ε = {plain(severity, 20)}")
        label = None if row.get("label") is None else plain(row["label"], 60)
        answers = {key[: -len(ANSWER)]: row[key] for key in row if key.endswith(ANSWER)}
        content = png_bytes(row.get("png"))
        alt = f"{noise} {', '.join(chosen)}".strip() + (f", a picture of {label}" if label else "")
        if content is None:
            shown = '<div class="absent">no picture: its data is no PNG of at most 4 MB</div>'
        else:
            source = base64.b64encode(content).decode("ascii")
            shown = f'<img src="data:image/png;base64,{source}" alt="{escaped(alt)}">'
        lines = "".join(_answer(name, answer, label) for name, answer in answers.items())
        title = f"<b>{escaped(noise)}</b>" + (f" <span>{escaped(', '.join(chosen))}</span>" if chosen else "")
        cards.append(f"<figure>{shown}<figcaption>{title}<ul>{lines}</ul></figcaption></figure>")
    labels = {plain(row["label"], 60) for row in pictures if row.get("label") is not None}
    about = f"<p>Its label is <b>{escaped(labels.pop())}</b>.</p>" if len(labels) == 1 else ""
    return f'{about}<div class="pictures">{"".join(cards)}</div>'


def _answer(name: str, answer: object, label: str | None) -> str:
    if answer is None:
        return f"<li>{escaped(name, 40)}: not asked</li>"
    text = plain(answer, 60)
    if label is None:
        return f"<li>{escaped(name, 40)}: {escaped(text)}</li>"
    right = text == label
    sign, kind = ("\N{CHECK MARK}", "right") if right else ("\N{BALLOT X}", "wrong")
    return (
        f'<li class="{kind}"><span role="img" aria-label="{kind}">{sign}</span> '
        f"{escaped(name, 40)}: {escaped(text)}</li>"
    )
