"""How the figures of `seatrial robustness` are written: whose they are, shares, intervals, drops as changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seatrial.report.markup import escaped
from seatrial.report.subject import Variant
from seatrial.report.wording import ABSENT, MINUS, change, finite, significant

Cell = Mapping[str, Any]
"""A cell, an entry of the summary or a finding of the JSON: `model`, `variant`, `target` and its figures."""


def variant_of(cell: Cell) -> Variant:
    """Return the variant of a cell as charts take it, without figures."""
    name = str(cell["variant"])
    return Variant(
        name=name,
        target=str(cell["target"]),
        bits="float32" if name == "float" else name,
        size_bytes=None,
        latency=None,
        metric="top1",
        value=None,
        interval=None,
        agreement=None,
        agreement_simulated=None,
        cells=(),
    )


def variants_of(cells: Sequence[Cell], model: str) -> list[Variant]:
    """Return the variants of one model in the order in which they come."""
    return list(dict.fromkeys(variant_of(cell) for cell in cells if cell["model"] == model))


def models_of(cells: Sequence[Cell]) -> list[str]:
    """Return the names of the models in the order in which they come."""
    return list(dict.fromkeys(str(cell["model"]) for cell in cells))


def whose(cell: Cell) -> str:
    """Return the model with its variant and target, in plain text."""
    return f"{cell['model']}: {variant_of(cell).title}"


def percent(value: object) -> str:
    """Return a fraction in percent without its unit, a dash where there is none."""
    number = finite(value)
    if number is None:
        return ABSENT
    text = f"{abs(100 * number):.1f}"
    return f"{MINUS if number < 0 and float(text) else ''}{text}"


def as_change(drop: object) -> str:
    """Return a drop as the change that it is, in points with its sign."""
    number = finite(drop)
    return ABSENT if number is None else change(-number, "top1")


def beneath(big: str, small: str) -> str:
    """Return HTML: a figure with its interval, both plain text, under it; without an interval the figure alone."""
    return escaped(big) + (f'<span class="sub">{escaped(small)}</span>' if small else "")


def mean_with_interval(found: object, *, scale: float = 1.0) -> str:
    """Return HTML: the `value` of a mapping with `low` and `high` under it, a dash for anything else."""
    if not isinstance(found, Mapping):
        return ABSENT
    parts = [finite(found.get(key)) for key in ("value", "low", "high")]
    if None in parts:
        return ABSENT
    value, low, high = (significant(scale * part) for part in parts if part is not None)
    return beneath(value, f"{low} to {high}")


def asked(cell: Cell) -> str:
    """Return what was asked of a noise, in plain text: `pgd linf ε = 2/255`, `fog severity 3`, `resize opencv-area`."""
    parts = [str(cell[key]) for key in ("name", "norm", "option") if cell[key] is not None]
    if cell["severity"] is not None:
        parts.append(f"ε = {cell['severity']}" if cell["family"] == "attack" else f"severity {cell['severity']}")
    return " ".join(parts)


def shown_value(cell: Cell) -> float | None:
    """Return top-1 of a cell, the clean figure where the noise changes nothing, None where there is none."""
    if cell["status"] == "no-noise":
        return finite(cell["clean"])
    return finite(cell["value"]) if cell["status"] == "done" else None
