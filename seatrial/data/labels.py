"""How the names of folders, or names in a table, become the labels of a model."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from seatrial.errors import BadInput

MAX_LABEL = 1_000_000
MAX_TABLE_BYTES = 64 * 2**20

_WNID = re.compile(r"n[0-9]{8}")
_INTEGER = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True)
class LabelRule:
    """The label of each name, the names of the classes by label, and in words how they were found."""

    label_of: dict[str, int]
    class_names: tuple[str, ...]
    rule: str


def choose_labels(
    names: Iterable[str],
    *,
    class_names: Sequence[str] | None = None,
    wnids: Sequence[str] | None = None,
    classes_file: Path | None = None,
    n_classes: int | None = None,
) -> LabelRule:
    """Give each of `names` a label by the first rule that fits all of them.

    In this order: `classes_file`; the model's class names (exactly, else without regard to case); ImageNet's wnids
    through `wnids`; integers by their value; sorted order. Raises BadInput, naming the first, for a name that the
    file or the wnids do not have, an ambiguous name, and a label outside the model's classes.
    """
    given = sorted(set(names))
    if n_classes is None and class_names is not None:
        n_classes = len(class_names)
    found = _by_rule(given, class_names, wnids, classes_file, n_classes)
    top = MAX_LABEL if n_classes is None else n_classes
    for name in given:
        if not 0 <= found.label_of[name] < top:
            raise BadInput(
                f"label {found.label_of[name]} of '{name}' (by {found.rule})",
                f"labels from 0 to {top - 1}",
                "check the data, or map names to labels with --classes FILE",
            )
    return found


def check_integers(labels: Iterable[int], n_classes: int | None) -> None:
    """Raise BadInput for the first label outside 0 to `n_classes` - 1 (or a million)."""
    top = MAX_LABEL if n_classes is None else n_classes
    for position, label in enumerate(labels):
        if not 0 <= label < top:
            raise BadInput(f"label {label} of sample {position}", f"labels from 0 to {top - 1}", "check the data")


def _by_rule(
    names: list[str],
    class_names: Sequence[str] | None,
    wnids: Sequence[str] | None,
    classes_file: Path | None,
    n_classes: int | None,
) -> LabelRule:
    integers = all(_INTEGER.fullmatch(name) for name in names)
    if classes_file is not None:
        table, listed = read_classes_file(classes_file)
        found, missing = _match(names, table)
        if not missing:
            return LabelRule(found, tuple(class_names or listed), f"classes file {classes_file.name}")
        if integers and not found:
            # The labels are numbers already and the file only says what they mean.
            values = {name: int(name) for name in names}
            return LabelRule(values, tuple(class_names or listed), f"integers, named by {classes_file.name}")
        raise BadInput(
            f"'{missing[0]}', which {classes_file} does not have", "every name of the data in it", "add the name"
        )
    note = ""
    if class_names is not None:
        found, missing = _match(names, enumerate(class_names))
        if not missing:
            return LabelRule(found, tuple(class_names), "class names")
        if found:
            note = f" ({len(found)} of {len(names)} names are class names of the model, '{missing[0]}' is not)"
    if all(_WNID.fullmatch(name) for name in names):
        if wnids is not None:
            found, missing = _match(names, enumerate(wnids))
            if missing:
                raise BadInput(
                    f"the wnid '{missing[0]}'", "wnids that the model knows", "map it to a label with --classes FILE"
                )
            return LabelRule(found, tuple(class_names or wnids), "wnid")
        if n_classes is not None and n_classes > len(names):
            # Sorted order would be wrong for certain: these are some of the model's classes, not all.
            raise BadInput(
                f"{len(names)} wnids ('{names[0]}' ...) for a model of {n_classes} classes without known wnids",
                "the label of each",
                "give --classes FILE with one wnid a line, in the order of the model's classes",
            )
    if integers:
        values = {name: int(name) for name in names}
        return LabelRule(values, _names_for(values.values(), class_names, n_classes), f"integers{note}")
    in_order = {name: label for label, name in enumerate(names)}
    return LabelRule(in_order, tuple(class_names or names), f"sorted order{note}")


def _names_for(labels: Iterable[int], class_names: Sequence[str] | None, n_classes: int | None) -> tuple[str, ...]:
    if class_names is not None:
        return tuple(class_names)
    highest = min(max(labels, default=0), MAX_LABEL)
    return tuple(str(label) for label in range(max(n_classes or 0, highest + 1)))


def _match(names: Iterable[str], known: Iterable[tuple[int, str]]) -> tuple[dict[str, int], list[str]]:
    """Return the labels of the names that `known` (label, name) has, and the names it has not."""
    exact: dict[str, set[int]] = {}
    folded: dict[str, set[int]] = {}
    for label, name in known:
        exact.setdefault(name, set()).add(label)
        folded.setdefault(name.strip().casefold(), set()).add(label)
    found: dict[str, int] = {}
    missing: list[str] = []
    for name in names:
        labels = exact.get(name) or folded.get(name.strip().casefold())
        if labels is None:
            missing.append(name)
        elif len(labels) > 1:
            raise BadInput(
                f"'{name}', the name of the classes {' and '.join(map(str, sorted(labels)))}",
                "a name for each class alone",
                "map names to labels with --classes FILE (name,label)",
            )
        else:
            found[name] = next(iter(labels))
    return found, missing


def read_classes_file(path: Path) -> tuple[list[tuple[int, str]], tuple[str, ...]]:
    """Read a classes file: the (label, name) pairs it has, and one name for each label.

    Either one name a line, in order of labels (a line `n01440764 tench` has the wnid as a second name), or a CSV of
    name and label, with or without the heading `name,label`. Raises BadInput for a file that is neither.
    """
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise BadInput(f"{path}, above {MAX_TABLE_BYTES // 2**20} MiB", "a list of class names", "check the path")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as failure:
        raise BadInput(f"{path} cannot be read ({failure})", "a text file of class names", "check --classes") from None
    lines = text.rstrip().splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise BadInput(f"{path}, line {number}, is empty", "one class name a line", "remove the line")
    pairs = _csv_pairs(path, lines)
    if pairs is None:
        pairs = [(label, line.strip()) for label, line in enumerate(lines)]
        if pairs and all(_WNID.match(line) and line[9:10].isspace() for _, line in pairs):
            listed = tuple(line[9:].strip() for _, line in pairs)
            return [(label, part) for label, line in pairs for part in (line, line[:9], line[9:].strip())], listed
    if len(pairs) < 2:
        raise BadInput(f"{path} with {len(pairs)} classes", "at least two", "check --classes")
    first: dict[int, str] = {}
    for label, name in pairs:
        first.setdefault(label, name)
    top = max(first)
    if min(first) < 0 or top >= MAX_LABEL:
        raise BadInput(f"{path} with the label {min(first) if min(first) < 0 else top}", "class indices", "mend it")
    return pairs, tuple(first.get(label, str(label)) for label in range(top + 1))


def _csv_pairs(path: Path, lines: list[str]) -> list[tuple[int, str]] | None:
    rows = csv_rows(path.name, "\n".join(lines))
    heading = [cell.strip().lower() for cell in rows[0]] if rows else []
    if {"name", "label"} <= set(heading):
        name_at, label_at, rows = heading.index("name"), heading.index("label"), rows[1:]
    elif rows and all(len(row) == 2 and _INTEGER.fullmatch(row[1].strip()) for row in rows):
        name_at, label_at = 0, 1
    else:
        return None
    for number, row in enumerate(rows, start=1):
        if len(row) <= max(name_at, label_at) or not _INTEGER.fullmatch(row[label_at].strip()):
            raise BadInput(f"{path}, row {number}: {','.join(row)[:80]}", "name,label with a whole number", "mend it")
    return [(int(row[label_at]), row[name_at].strip()) for row in rows]


def read_label_table(name: str, content: bytes) -> list[tuple[str, str]]:
    """Read (file, label) from the bytes of a `labels.csv`; other columns are ignored.

    Raises BadInput for a table without those columns, with an empty cell in them, or with a file listed twice.
    """
    try:
        rows = csv_rows(name, content.decode("utf-8-sig"))
    except UnicodeDecodeError as failure:
        raise BadInput(f"{name} is not UTF-8 text ({failure.reason})", "a CSV file", "save it as UTF-8") from None
    heading = [cell.strip().lower() for cell in rows[0]] if rows else []
    if not {"file", "label"} <= set(heading):
        raise BadInput(
            f"{name} with the columns '{','.join(heading)[:80]}'", "the columns file,label", "add that first line"
        )
    file_at, label_at = heading.index("file"), heading.index("label")
    table: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=1):
        cells = [row[at].strip() if at < len(row) else "" for at in (file_at, label_at)]
        if not all(cells):
            raise BadInput(f"{name}, row {number}, without a file or a label", "both in each row", "mend the row")
        if cells[0] in table:
            raise BadInput(f"{name} with '{cells[0]}' twice", "each file once", "remove one of the rows")
        table[cells[0]] = cells[1]
    return list(table.items())


def csv_rows(name: str, text: str) -> list[list[str]]:
    """Return the rows of a CSV text without its empty lines; raises BadInput where it cannot be read."""
    try:
        return [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as failure:
        raise BadInput(f"{name} cannot be read ({failure})", "a CSV file", "mend it") from None
