"""What a figure rests on: settings, data, machine, and everything that was done otherwise than asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seatrial.report.markup import bullets, details, escaped, pairs, table
from seatrial.report.wording import size

MOST_BAD = 100


def appendix(result: Mapping[str, Any], settings: Mapping[str, Any], fallbacks: Sequence[object]) -> str:
    """Return settings, model and data, machine, warnings and every fallback of a run as HTML."""
    warnings = list(result.get("warnings") or ())
    files = {key: result.get(key) for key in ("store", "report") if result.get(key)}
    return (
        '<section id="settings"><h2>Settings</h2>'
        + (pairs(settings) if settings else '<p class="quiet">The run recorded none.</p>')
        + "</section>"
        + '<section id="subject"><h2>Model and data</h2>'
        + "".join(subject(title, result.get(title.lower())) for title in ("Model", "Data", "Calibration"))
        + (f"<h3>Files</h3>{pairs(files)}" if files else "")
        + "</section>"
        + f'<section id="machine"><h2>Machine</h2>{machine(result.get("machine"))}</section>'
        + f'<section id="warnings"><h2>Warnings ({len(warnings)})</h2>{bullets(warnings, "None.")}</section>'
        + f'<section id="fallbacks"><h2>Fallbacks ({len(fallbacks)})</h2>'
        + "<p>What was done otherwise than asked, and why.</p>"
        + f"{fallback_list(fallbacks)}</section>"
    )


def subject(title: str, part: object) -> str:
    """Return the model, the data or the calibration of a run as HTML, bad samples folded away; '' where absent."""
    if not isinstance(part, Mapping):
        return f"<h3>{title}</h3><p>{escaped(part)}</p>" if part else ""
    shown = dict(part)
    bad = shown.pop("bad", None)
    html = f"<h3>{title}</h3>{pairs(shown)}"
    if not isinstance(bad, list | tuple) or not bad:
        return html + ("<p>No sample was left out.</p>" if bad is not None else "")
    rows = [_bad(row) for row in bad[:MOST_BAD]]
    more = f", the first {MOST_BAD} listed" if len(bad) > MOST_BAD else ""
    listed = table(["sample", "reason"], rows, caption="Samples that were left out")
    return html + details(f"{len(bad):,} bad samples left out{more}", listed)


def _bad(row: object) -> list[str]:
    if isinstance(row, Mapping):
        sample = row.get("sample") or row.get("id") or row.get("file")
        return [escaped(sample), escaped(row.get("reason") or "no reason given")]
    if isinstance(row, list | tuple) and len(row) == 2:
        return [escaped(row[0]), escaped(row[1])]
    return [escaped(row), "no reason given"]


def machine(part: object) -> str:
    """Return the machine's fingerprint as HTML."""
    if not isinstance(part, Mapping) or not part:
        return '<p class="quiet">The run recorded none.</p>'
    shown: dict[str, object] = dict(part)
    libraries = shown.pop("libraries", None)
    memory = shown.pop("memory_bytes", None)
    if isinstance(memory, int | float):
        shown["memory"] = size(memory)
    if isinstance(libraries, Mapping):
        shown |= {f"{name}": version for name, version in sorted(libraries.items())}
    return pairs({key.replace("_", " "): value for key, value in shown.items()})


def fallback_list(fallbacks: Sequence[object]) -> str:
    """Return every fallback as HTML: a text, or a mapping whose entries are written one after the other."""
    lines = [
        " · ".join(str(value) for value in item.values() if value is not None) if isinstance(item, Mapping) else item
        for item in fallbacks
    ]
    return bullets(lines, "None.")
