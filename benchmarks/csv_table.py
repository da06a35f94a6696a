"""Cells of `seatrial robustness` as CSV, and tables of the pages, for the studies."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def flat(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cell with each mean and its interval in three columns."""
    found: dict[str, Any] = {}
    for key, value in cell.items():
        if isinstance(value, Mapping):
            found |= {key: value["value"], f"{key}_low": value["low"], f"{key}_high": value["high"]}
        else:
            found[key] = value
    return found


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the columns that have a value in some row; without rows there is no file."""
    if not rows:
        file.unlink(missing_ok=True)
        return
    names = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(names), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    print(f"wrote {file.name}: {len(rows)} rows")


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as the pages have it."""
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()
