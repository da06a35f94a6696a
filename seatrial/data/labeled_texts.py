"""Texts with a class each, as the token ids that a sequence classifier reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seatrial.core.truth import Tokens
from seatrial.data.labels import choose_labels
from seatrial.data.text_rows import positions, read_rows
from seatrial.data.text_set import Encode, TextSet
from seatrial.errors import BadInput

NOTHING = "the tokenizer makes nothing of the text"


def open_labeled_texts(
    source: str | Path,
    encode: Encode,
    *,
    length: int,
    front: Sequence[int] = (),
    back: Sequence[int] = (),
    text_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    n_classes: int | None = None,
    labeled: bool = True,
) -> TextSet:
    """Open texts with labels for classification, columns as `read_rows` finds them.

    Each text is `front`, its tokens and `back` ([CLS] and [SEP]); where that exceeds `length` tokens, its own are cut
    off at the end. Labels are numbers, or names matched to `class_names`, see `choose_labels`. A text that tokenizes
    to nothing is listed in `bad`. Without `labeled` the file needs no label, and none is read.
    Raises BadInput, naming file and row, for anything else, and where nothing is left.
    """
    room = length - len(front) - len(back)
    if room < 1:
        least = f"at least {length - room + 1}, special tokens included"
        raise BadInput(f"texts of {length} tokens", least, "give a longer window")
    rows = read_rows(source, text_column, label_column, labeled=labeled)
    found = [tuple(encode(row.text)) for row in rows]
    names = positions(len(rows))
    kept = [at for at, ids in enumerate(found) if ids]
    if not kept:
        raise BadInput(f"'{source}' whose texts tokenize to nothing", "texts of at least one token", "check the file")
    classes: tuple[int, ...] = ()
    class_list: tuple[str, ...] = ()
    rule = "a text a row"
    if labeled:
        chosen = choose_labels((row.label for row in rows), class_names=class_names, n_classes=n_classes)
        classes = tuple(chosen.label_of[rows[at].label] for at in kept)
        class_list, rule = chosen.class_names, chosen.rule
    cut = sum(len(found[at]) > room for at in kept)
    return TextSet(
        Path(source).stem,
        tuple(names[at] for at in kept),
        tuple(Tokens((*front, *found[at][:room], *back)) for at in kept),
        rule,
        class_list,
        tuple((names[at], f"{rows[at].where}: {NOTHING}") for at, ids in enumerate(found) if not ids),
        (f"{cut} texts were cut off after {length} tokens",) if cut else (),
        classes,
    )
