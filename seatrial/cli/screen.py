"""What a person sees while a command runs and when it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from seatrial.core.noise import Family
from seatrial.jobs.result import TrialResult, write_text
from seatrial.jobs.settings import Progress as Told
from seatrial.report.markup import shortened
from seatrial.report.quantize_page import PLAIN, gained, narrowed
from seatrial.report.site_course import decibels, site_changes
from seatrial.report.subject import FAMILIES
from seatrial.report.summary import summary_rows

OUT = Console()
ERR = Console(stderr=True)
_WORST = 5


@contextmanager
def progress_bar() -> Iterator[Told]:
    """Show a bar on stderr while the block runs; it vanishes at the end and is silent where stderr is no terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
    )
    bar = Progress(*columns, TimeElapsedColumn(), console=ERR, transient=True, disable=not ERR.is_terminal)
    with bar as shown:
        task = shown.add_task("starting", total=None)

        def tell(done: int, total: int, text: str) -> None:
            shown.update(task, completed=done, total=total or None, description=Text(text).plain)

        yield tell


def show_trial(result: TrialResult) -> None:
    """Print the table of a trial, its verdict, warnings, and where the files are."""
    rows = summary_rows(result.data)
    families: list[Family] = [name for name in FAMILIES if any(name in row.changes for row in rows)]
    # Without borders nine columns fit a terminal of 80 characters.
    table = Table(title=str(result.data["model"]["name"]), box=None, padding=(0, 2, 0, 0), pad_edge=False)
    metric = rows[0].variant.metric if rows else "value"
    for name in ("variant", "target"):
        table.add_column(name, no_wrap=True)
    for name in ("MB", "ms", "speed", metric, *families):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        variant = row.variant
        changes = [_points(row.changes[f].mean if f in row.changes else None) for f in families]
        table.add_row(
            variant.name,
            variant.target,
            _number(None if variant.size_bytes is None else variant.size_bytes / 1e6, ".2f"),
            _number(variant.median_ms, ".2f"),
            _number(row.speedup, ".2f", "x"),
            _number(variant.value, ".2%") if metric == "top1" else _number(variant.value, ".4g"),
            *changes,
        )
    OUT.print(table)
    OUT.print(Text("ms: median at batch 1. Under noise: mean change in points against clean data.", style="dim"))
    OUT.print(Text(result.verdict()))
    for warning in result.data["warnings"]:
        OUT.print(Text(f"note: {warning}"), soft_wrap=True)
    OUT.print(Text(f"report: {result.data['report']}"), soft_wrap=True)


def show_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print dictionaries with equal keys as a table."""
    table = Table(title=title)
    for place, name in enumerate(rows[0] if rows else ()):
        # What a row is about is shown whole; figures may take two lines.
        right = isinstance(rows[0][name], int | float)
        table.add_column(name, justify="right" if right else "left", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(Text(f"{value:.4g}" if isinstance(value, float) else str(value)) for value in row.values()))
    OUT.print(table)


def show_gains(data: Mapping[str, Any]) -> None:
    """Print the sites of a quantized network that lose most, before and after, and what migrations did to ranges.

    Nothing is printed for a method that is held against none.
    """
    sites = site_changes(data["sites"])
    if any(one.before_db is not None for one in sites):
        known = [(min(levels), one) for one in sites if (levels := one.levels_db)]
        worst = [one for _, one in sorted(known, key=lambda pair: pair[0])[:_WORST]]
        method = str(data["method"])
        rows = [
            {
                "worst sites": shortened(one.site, 40),
                "bits": one.bits,
                f"{PLAIN}, dB": decibels(one.before_db),
                f"{method}, dB": decibels(one.after_db),
            }
            for one in worst
        ]
        show_rows("signal to quantization noise of what reads a site", rows)
        OUT.print(Text(gained(sites)), soft_wrap=True)
    if data["channel_ranges"]:
        OUT.print(Text(narrowed(data["channel_ranges"])), soft_wrap=True)


def write_json(data: Any, file: Path | None) -> None:
    """Write a result where `--json` asked for it."""
    if file is not None:
        write_text(file, json.dumps(data, indent=1, allow_nan=False) + "\n")


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:+.1f}"
