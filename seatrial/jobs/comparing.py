"""Two runs side by side, paired sample by sample; or the report of one run made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from seatrial.bench.store import Store
from seatrial.errors import BadInput
from seatrial.jobs.result import write_text
from seatrial.report.compare import Question, compare
from seatrial.report.page import render


def remake_report(run: Path, out: Path) -> Path:
    """Write the report of a finished run again from its JSON (without example pictures and per-site errors)."""
    write_text(out, render(_result(run), {}))
    return out


def compare_runs(first: Path, second: Path, out: Path) -> dict[str, Any]:
    """Write the comparison of two runs as HTML and return it as JSON; raises BadInput for folders without a run."""
    page, data = compare(_result(first), _result(second), _records(first), _records(second))
    write_text(out, page)
    return data


def _result(run: Path) -> dict[str, Any]:
    file = run / "trial.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"'{run}' without trial.json", "the folder of a finished trial", "check the path") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} that is not JSON", "a file written by `seatrial trial`", "run it again") from error


def _records(run: Path) -> dict[Question, pa.Table]:
    store = Store(run / "store", create=False)
    found: dict[Question, pa.Table] = {}
    for entry in store.cells():
        if entry.status == "done":
            asked = Question(entry.cell.variant, entry.cell.target, entry.cell.noise)
            table = store.read(entry.cell).table
            # Clean data may have been asked over all samples and over fewer: the larger answer serves both.
            if asked not in found or len(table) > len(found[asked]):
                found[asked] = table
    return found
