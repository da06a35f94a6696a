"""Texts and questions as token ids: for perplexity, for classification and for multiple choice."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, final

from seatrial.core.sample import Sample
from seatrial.core.truth import Choices, Tokens
from seatrial.data.entry_set import digest_of
from seatrial.data.text_rows import json_rows, positions, text_of
from seatrial.errors import BadInput

Encode = Callable[[str], Sequence[int]]
"""A tokenizer: text to ids, without any that begin or end it."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@final
@dataclass(frozen=True, eq=False)
class TextSet:
    """Texts (`Tokens`) or questions (`Choices`) in the order of their file, with ids by position.

    A text has its class as label, 0 where it has none; a question its right choice. `label_rule` says how the file was
    cut or its labels were read; `notes` what was shortened.
    """

    name: str
    ids: tuple[str, ...]
    truths: tuple[Tokens | Choices, ...]
    label_rule: str
    class_names: tuple[str, ...] = ()
    bad: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()
    """The class of each text; empty where texts have none."""

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.truths)
        assert len(self.classes) in (0, len(self.ids))
        assert all(a < b for a, b in pairwise(self.ids)), "samples must be in order of unique ids"

    @property
    def labels(self) -> Sequence[int]:
        """The right choice of each question, the class of each text, 0 where it has none."""
        return self.classes or tuple(truth.answer if isinstance(truth, Choices) else 0 for truth in self.truths)

    @property
    def digest(self) -> str:
        """BLAKE2b over ids, labels and tokens."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return digest_of((n, y, _content(truth)) for n, y, truth in zip(self.ids, self.labels, self.truths))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.ids[index], self.labels[index], target=self.truths[index])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def subset(self, indices: Iterable[int]) -> Self:
        """Return the samples at these positions, in order of id."""
        kept = sorted(set(indices))
        ids, truths = tuple(self.ids[at] for at in kept), tuple(self.truths[at] for at in kept)
        classes = tuple(self.classes[at] for at in kept) if self.classes else ()
        return replace(self, ids=ids, truths=truths, classes=classes)

    def without(self, ids: Iterable[str]) -> Self:
        """Return the samples whose ids are not among `ids`."""
        unwanted = frozenset(ids)
        return self.subset(at for at, name in enumerate(self.ids) if name not in unwanted)


def _content(truth: Tokens | Choices) -> bytes:
    judged = truth.judged if isinstance(truth, Tokens) else None
    return repr(truth if judged is None else (truth, judged)).encode()


def open_texts(source: str | Path, encode: Encode, *, length: int, begin: int | None = None) -> TextSet:
    """Open texts for perplexity, at most `length` tokens each with the token `begin`, if any, in front.

    A `.jsonl` file holds a text a row, as `text` or as ready token `ids`; what is longer is cut off. Any other file
    is one running text, cut into pieces of `length` tokens of which the last may be shorter (the usual perplexity of
    WikiText). Raises BadInput, naming file and row, for anything else.
    """
    if length < 2:
        raise BadInput(f"texts of {length} tokens", "at least 2", "give a longer context")
    path = Path(source).expanduser()
    front = () if begin is None else (begin,)
    text = text_of(path)
    notes: tuple[str, ...] = ()
    if path.suffix.lower() == ".jsonl":
        rows = [_row_ids(row, where, encode, front) for where, row in json_rows(path, text)]
        cut = sum(len(row) > length for row in rows)
        notes = (f"{cut} texts were cut off after {length} tokens",) if cut else ()
        pieces, rule = [row[:length] for row in rows], "a text a row"
    else:
        whole, step = tuple(encode(text)), length - len(front)
        pieces = [front + whole[start : start + step] for start in range(0, len(whole), step)]
        pieces = [piece for piece in pieces if len(piece) >= 2]
        rule = f"one text in pieces of {length} tokens"
    if not pieces:
        raise BadInput(f"'{source}' without a text", "at least two tokens", "check --data")
    return TextSet(path.stem, positions(len(pieces)), tuple(Tokens(piece) for piece in pieces), rule, notes=notes)


def open_questions(source: str | Path, encode: Encode, *, length: int, begin: int | None = None) -> TextSet:
    """Open questions with choices, each choice at most `length` tokens with its prompt (cut off at the front).

    A `.jsonl` file holds `question`, a list of `choices` and the `answer`, a number from 0, a letter from A, or the
    text of the right one, in each row; a `.csv` file the columns question, A, B, ... (or choice0, choice1, ...) and
    answer. A choice is joined to its question by a space, tokenized with it, and begins where the question's own
    tokens end. Raises BadInput, naming file and row, for anything else. Source: EleutherAI's lm-evaluation-harness
    (`_encode_pair`).
    """
    path = Path(source).expanduser()
    text = text_of(path)
    if path.suffix.lower() == ".csv":
        rows = _csv_rows(path, text)
    elif path.suffix.lower() == ".jsonl":
        rows = list(json_rows(path, text))
    else:
        raise BadInput(f"'{source}'", "a .jsonl or .csv file", "save the questions as one of them")
    front = () if begin is None else (begin,)
    truths, cut = [], 0
    for where, row in rows:
        question, choices, answer = _question(row, where)
        asked = tuple(encode(question))
        prompt = front + asked
        parts = tuple(tuple(encode(f"{question} {choice}"))[len(asked) :] for choice in choices)
        if not prompt or not all(parts):
            raise BadInput(f"{where}, with an empty question or choice", "text in each", "mend the row")
        longest = max(map(len, parts))
        if longest >= length:
            raise BadInput(f"{where}, with a choice of {longest} tokens", f"fewer than {length}", "shorten it")
        if len(prompt) + longest > length:
            cut += 1
            kept = length - longest - len(front)
            prompt = front + prompt[len(prompt) - kept :]
        truths.append(Choices(prompt, parts, tuple(len(choice.encode()) for choice in choices), answer))
    if not truths:
        raise BadInput(f"'{source}' without a question", "at least one", "check --data")
    notes = (f"{cut} questions were cut off at the front to {length} tokens",) if cut else ()
    return TextSet(path.stem, positions(len(truths)), tuple(truths), "a question a row", notes=notes)


def _row_ids(row: dict[str, Any], where: str, encode: Encode, front: tuple[int, ...]) -> tuple[int, ...]:
    ids, text = row.get("ids"), row.get("text")
    if isinstance(ids, list) and all(type(value) is int and value >= 0 for value in ids):
        found = tuple(ids) if tuple(ids[: len(front)]) == front else front + tuple(ids)
    elif isinstance(text, str):
        found = front + tuple(encode(text))
    else:
        raise BadInput(f"{where}, without text or ids", "a text, or a list of token ids", "mend the row")
    if len(found) < 2:
        raise BadInput(f"{where}, of {len(found)} tokens", "at least 2", "remove the row")
    return found


def _csv_rows(path: Path, text: str) -> list[tuple[str, dict[str, Any]]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as failure:
        raise BadInput(f"{path.name} cannot be read ({failure})", "a CSV file", "mend it") from None
    heading = [cell.strip().lower() for cell in rows[0]] if rows else []
    letters = [at for at, cell in enumerate(heading) if cell.upper() in _LETTERS and len(cell) == 1]
    numbered = [at for at, cell in enumerate(heading) if cell.startswith("choice")]
    choices = letters or numbered
    if not {"question", "answer"} <= set(heading) or len(choices) < 2:
        came = f"{path.name} with the columns '{','.join(heading)[:80]}'"
        raise BadInput(came, "the columns question,A,B,...,answer", "add that first line")
    question, answer = heading.index("question"), heading.index("answer")
    found = []
    for number, row in enumerate(rows[1:], start=1):
        where = f"{path.name}, row {number}"
        if len(row) != len(heading):
            raise BadInput(f"{where}, with {len(row)} cells", f"{len(heading)}, as in the first line", "mend the row")
        given = [row[at] for at in choices if row[at].strip()]
        found.append((where, {"question": row[question], "choices": given, "answer": row[answer].strip()}))
    return found


def _question(row: dict[str, Any], where: str) -> tuple[str, list[str], int]:
    question, choices, answer = row.get("question"), row.get("choices"), row.get("answer")
    if not isinstance(question, str) or not isinstance(choices, list) or len(choices) < 2:
        raise BadInput(f"{where}, without a question and its choices", "question, choices, answer", "mend the row")
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise BadInput(f"{where}, with a choice that is no text", "a list of texts", "mend the row")
    if isinstance(answer, str):
        meant = {choices.index(answer)} if answer in choices else set[int]()
        if answer.isascii() and answer.isdigit() and len(answer) < 4:
            meant.add(int(answer))
        elif len(answer) == 1 and answer.upper() in _LETTERS:
            meant.add(_LETTERS.index(answer.upper()))
        if len(meant) > 1:
            came = f"{where}, with the answer '{answer}', which may be choice {' or '.join(map(str, sorted(meant)))}"
            raise BadInput(came, "one meaning", "write the number of the choice in JSON Lines")
        answer = meant.pop() if meant else answer
    if type(answer) is not int or not 0 <= answer < len(choices):
        wanted = f"0 to {len(choices) - 1}, a letter from A, or the text of a choice"
        raise BadInput(f"{where}, with the answer {answer!r}"[:160], wanted, "mend the row")
    return question, choices, answer
