"""Texts in windows that overlap, so that each token is judged once and with much before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seatrial.core.truth import Tokens
from seatrial.data.text_rows import TABLES, positions, read_rows, text_of
from seatrial.data.text_set import Encode, TextSet
from seatrial.errors import BadInput


def windows(ids: Sequence[int], *, window: int, stride: int) -> list[Tokens]:
    """Return the windows of a text: at most `window` tokens each, begun `stride` tokens apart.

    Law: each token is judged once, in the first window that holds it; only the first token of the text, and with
    `stride` equal to `window` that of each window, has nothing before it and is not judged. Raises BadInput for
    strides that would leave tokens out.
    Source: transformers' guide to the perplexity of fixed-length models.
    Departures: the guide counts a token too few in each window after the first.
    """
    if window < 2 or not 1 <= stride <= window:
        raise BadInput(f"windows of {window} tokens, {stride} apart", "a stride from 1 to the window", "change one")
    found: list[Tokens] = []
    seen = 0
    for start in range(0, len(ids), stride):
        piece = tuple(ids[start : start + window])
        end = start + len(piece)
        judged = min(end - seen, len(piece) - 1)
        if judged:
            found.append(Tokens(piece, judged if judged < len(piece) - 1 else None))
        seen = end
        if end == len(ids):
            break
    return found


def open_windows(
    source: str | Path,
    encode: Encode,
    *,
    window: int,
    stride: int | None = None,
    begin: int | None = None,
    text_column: str | None = None,
) -> TextSet:
    """Open texts for perplexity in windows of at most `window` tokens (see `windows`), by default side by side.

    A `.tsv`, `.csv` or `.jsonl` file holds a text a row (see `read_rows`), any other file is one running text; each
    text has the token `begin`, if any, once in front. A text of which nothing can be judged is listed in `bad`.
    Raises BadInput, naming file and row, for anything else, and where nothing is left.
    """
    path = Path(source).expanduser()
    front = () if begin is None else (begin,)
    if path.suffix.lower() in TABLES:
        rows = read_rows(source, text_column, labeled=False)
        texts = [tuple(encode(row.text)) if row.ids is None else row.ids for row in rows]
        places = [row.where for row in rows]
    elif text_column is not None:
        raise BadInput(f"--text-column {text_column} for '{source}'", "a .tsv, .csv or .jsonl file", "leave it out")
    else:
        texts, places = [tuple(encode(text_of(path)))], [path.name]
    texts = [ids if not ids or ids[: len(front)] == front else front + ids for ids in texts]
    step = window if stride is None else stride
    pieces = [(at, piece) for at, ids in enumerate(texts) for piece in windows(ids, window=window, stride=step)]
    if not pieces:
        raise BadInput(f"'{source}' whose texts tokenize to nothing", "texts of at least two tokens", "check the file")
    held = {at for at, _ in pieces}
    names = positions(len(texts))
    bad = tuple(
        (names[at], f"{place}: fewer than two tokens, so none to judge")
        for at, place in enumerate(places)
        if at not in held
    )
    apart = f"windows of {window} tokens, {step} apart"
    return TextSet(path.stem, positions(len(pieces)), tuple(piece for _, piece in pieces), apart, bad=bad)
