"""The rows of a table of texts: TSV, CSV or JSON Lines, columns by name or by number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from seatrial.data.bad_sample import BadSample
from seatrial.data.image_set import FileContent
from seatrial.data.labels import csv_rows
from seatrial.errors import BadInput

TEXT_COLUMNS = ("text", "text_a", "sentence", "review")
LABEL_COLUMNS = ("label", "labels", "class", "target")
TABLES = (".tsv", ".csv", ".jsonl")

_Cells = tuple[str, Sequence[str]]


@final
@dataclass(frozen=True)
class Row:
    """One row: `where` it stands, for messages; its text, or ready token `ids`; its label as written, if any."""

    where: str
    text: str
    label: str = ""
    ids: tuple[int, ...] | None = None


def read_rows(
    source: str | Path, text_column: str | None = None, label_column: str | None = None, *, labeled: bool
) -> list[Row]:
    """Return the rows of a `.tsv`, `.csv` or `.jsonl` file, their labels only if they are `labeled`.

    A column is named as in the heading (the keys of JSON), or by its number from 1 where a file has no heading; by
    default the text is in text, text_a, sentence or review and the label in label, labels, class or target. In TSV a
    quotation mark is a letter, as in GLUE. Without `labeled` a JSON row may hold token `ids` in place of a text.
    Raises BadInput, naming file and row, for anything else.
    """
    path = Path(source).expanduser()
    kind = path.suffix.lower()
    if kind not in TABLES:
        raise BadInput(f"'{source}'", "a .tsv, .csv or .jsonl file", "save the texts as one of them")
    text = text_of(path)
    if kind == ".jsonl":
        rows = [_json_row(where, row, text_column, label_column, labeled) for where, row in json_rows(path, text)]
    else:
        rows = _table_rows(path, text, text_column, label_column, labeled)
    if not rows:
        raise BadInput(f"'{source}' without a row", "at least one text", "check --data")
    return rows


def text_of(path: Path) -> str:
    """Return the text of a file; raises BadInput where it is missing, too large or no UTF-8."""
    if not path.is_file():
        raise BadInput(f"no file '{path}'", "a text file", "check --data for a typing error")
    try:
        return FileContent(path).read().decode("utf-8-sig")
    except BadSample as failure:
        raise BadInput(f"{path}: {failure.reason}", "a readable file", "check it") from failure
    except UnicodeDecodeError as failure:
        raise BadInput(f"{path} is not UTF-8 text ({failure.reason})", "text", "save it as UTF-8") from None


def json_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each row of JSON Lines stands, and the row; raises BadInput for one that is no object."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name}, row {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as failure:
            raise BadInput(f"{where}, is damaged ({failure})", "a JSON object", "mend the row") from None
        if not isinstance(row, dict):
            raise BadInput(f"{where}, a {type(row).__name__}", "a JSON object", "mend the row")
        yield where, row


def positions(count: int) -> tuple[str, ...]:
    """Return `count` ids in order: positions from 0, filled up with zeros."""
    width = max(6, len(str(count - 1)))
    return tuple(f"{position:0{width}d}" for position in range(count))


def _table_rows(path: Path, text: str, text_column: str | None, label_column: str | None, labeled: bool) -> list[Row]:
    cells = _tsv_cells(path, text) if path.suffix.lower() == ".tsv" else _csv_cells(path, text)
    by_number = [column is not None and column.isdecimal() for column in (text_column, label_column)]
    if any(by_number):
        text_at = _numbered(text_column, "--text-column")
        label_at = _numbered(label_column, "--label-column") if labeled else None
        heading = ()
    else:
        heading = [cell.strip() for cell in cells[0][1]] if cells else []
        text_at = _named(path, heading, text_column, TEXT_COLUMNS, "--text-column")
        label_at = _named(path, heading, label_column, LABEL_COLUMNS, "--label-column") if labeled else None
        cells = cells[1:]
    found = []
    for where, row in cells:
        most = max(text_at, -1 if label_at is None else label_at)
        if len(row) <= most or (heading and len(row) != len(heading)):
            wanted = f"{len(heading)}, as in the first line" if heading else f"at least {most + 1}"
            raise BadInput(f"{where}, with {len(row)} cells", wanted, "mend the row")
        label = "" if label_at is None else row[label_at].strip()
        found.append(_checked(Row(where, row[text_at], label), labeled))
    return found


def _tsv_cells(path: Path, text: str) -> list[_Cells]:
    lines = enumerate(text.split("\n"), start=1)
    return [(f"{path.name}, row {n}", line.rstrip("\r").split("\t")) for n, line in lines if line.strip()]


def _csv_cells(path: Path, text: str) -> list[_Cells]:
    return [(f"{path.name}, row {n}", row) for n, row in enumerate(csv_rows(path.name, text), start=1)]


def _numbered(column: str | None, option: str) -> int:
    if column is None or not column.isdecimal() or int(column) < 1:
        came = f"no {option}" if column is None else f"{option} {column}"
        raise BadInput(came, "both columns by number, from 1", "name both, or number both where there is no heading")
    return int(column) - 1


def _named(path: Path, heading: Sequence[str], column: str | None, usual: Sequence[str], option: str) -> int:
    lower = [cell.lower() for cell in heading]
    at = next((lower.index(name) for name in ([column.lower()] if column else usual) if name in lower), None)
    if at is None:
        wanted = f"a column '{column}'" if column else f"one of the columns {', '.join(usual)}"
        do = f"give {option} a name of those, or a number (from 1) where the file has no heading"
        raise BadInput(f"{path.name} with the columns '{','.join(heading)[:80]}'", wanted, do)
    return at


def _json_row(where: str, row: dict[str, Any], text_column: str | None, label_column: str | None, labeled: bool) -> Row:
    ids = row.get("ids") if text_column is None and not labeled else None
    if isinstance(ids, list) and all(type(value) is int and value >= 0 for value in ids):
        return Row(where, "", ids=tuple(ids))
    text = _cell(where, row, text_column, TEXT_COLUMNS, "--text-column")
    if not isinstance(text, str):
        raise BadInput(f"{where}, with a text that is a {type(text).__name__}", "a text", "mend the row")
    label = _cell(where, row, label_column, LABEL_COLUMNS, "--label-column") if labeled else ""
    if type(label) not in (str, int):
        raise BadInput(f"{where}, with the label {label!r}"[:160], "a whole number or a name", "mend the row")
    return _checked(Row(where, text, str(label).strip()), labeled)


def _cell(where: str, row: dict[str, Any], column: str | None, usual: Sequence[str], option: str) -> object:
    key = next((name for name in ([column] if column else usual) if name in row), None)
    if key is None:
        wanted = f"a key '{column}'" if column else f"one of the keys {', '.join(usual)}"
        raise BadInput(f"{where}, with the keys '{','.join(row)[:80]}'", wanted, f"name it with {option}")
    return row[key]


def _checked(row: Row, labeled: bool) -> Row:
    if labeled and not row.label:
        raise BadInput(f"{row.where}, without a label", "a number or a name", "mend or remove the row")
    return row
