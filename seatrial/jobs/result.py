"""What a trial found: a table, the JSON, the report."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from seatrial.core.target import Timing
from seatrial.report.page import render
from seatrial.report.summary import SummaryRow, headline, summary_rows
from seatrial.report.verdict import title


@dataclass(frozen=True, eq=False)
class TrialResult:
    """`data` is the JSON of `seatrial trial` (documented in docs/json.md); `extras` is what only the report shows."""

    data: Mapping[str, Any]
    extras: Mapping[str, Any]
    folder: Path

    def table(self) -> str:
        """Return the summary as aligned text: one line per variant."""
        return self.to_pandas().to_string(index=False, na_rep="-")

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per variant: target, size, latency, speed-up, accuracy and change under each noise family."""
        return pd.DataFrame([_row(row) for row in summary_rows(self.data)])

    def verdict(self) -> str:
        """Return one sentence: how much faster, smaller and different the quantized model is."""
        return title(headline(summary_rows(self.data)))

    def report(self, path: Path | str | None = None) -> Path:
        """Write the report as one HTML file and return its path; without `path`, where the trial put it."""
        file = Path(path) if path is not None else self.folder / "report.html"
        write_text(file, render(self.data, self.extras))
        return file

    def save(self, path: Path | str) -> Path:
        """Write the JSON."""
        file = Path(path)
        write_text(file, json.dumps(self.data, indent=1, allow_nan=False) + "\n")
        return file


def write_text(file: Path, text: str) -> None:
    """Write a text file aside and rename it into place."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, file)


def _row(row: SummaryRow) -> dict[str, Any]:
    variant = row.variant
    line: dict[str, Any] = {
        "variant": variant.name,
        "target": variant.target,
        "size_mb": None if variant.size_bytes is None else round(variant.size_bytes / 1e6, 3),
        "latency_ms": None if variant.median_ms is None else round(variant.median_ms, 3),
        "speed_up": None if row.speedup is None else round(row.speedup, 2),
        variant.metric or "value": None if variant.value is None else round(variant.value, 4),
    }
    for family, change in row.changes.items():
        line[family] = None if change.mean is None else round(change.mean, 4)
    return line


def latency_data(timing: Timing | None, batch: int = 1) -> dict[str, Any] | None:
    """Return the latency at one batch size as JSON, None where it was not measured."""
    if timing is None:
        return None
    found = [latency for latency in timing.latency if latency.batch == batch]
    return asdict(found[0]) if found else None
