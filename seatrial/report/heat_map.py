"""Tables of shares whose cells are shaded by their value: heat maps that can be read, copied and printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seatrial.report.markup import escaped
from seatrial.report.wording import ABSENT

# The first color of the charts, so thin that the ink of either theme stands on it.
_SHADE = "rgba(26,127,196,{:.2f})"
_FAINT, _STRONG = 0.04, 0.54
_APART = "border-left:1px solid var(--ink-3)"
MOST_COLUMNS = 15


@dataclass(frozen=True)
class HeatGroup:
    """The columns of one subject: its title, and by (row, column) a fraction or, where there is none, a note why."""

    title: str
    values: Mapping[tuple[str, str], float | None]
    notes: Mapping[tuple[str, str], str]


def heat_tables(
    rows: Sequence[str],
    columns: Sequence[str],
    groups: Sequence[HeatGroup],
    *,
    corner: str,
    caption: str,
) -> str:
    """Return HTML: groups of columns side by side, fractions in percent, bluer the higher among all that are shown.

    All texts are plain. Groups that would make a table wider than a page go into further tables with the same shades.
    A cell without a value shows a dash, with its note as its title.
    """
    known = [value for group in groups for value in group.values.values() if value is not None]
    ends = (min(known), max(known)) if known else (0.0, 1.0)
    beside = max(1, MOST_COLUMNS // max(1, len(columns)))
    return "".join(
        _table(rows, columns, groups[first : first + beside], ends, corner, caption)
        for first in range(0, len(groups), beside)
    )


def _table(
    rows: Sequence[str],
    columns: Sequence[str],
    groups: Sequence[HeatGroup],
    ends: tuple[float, float],
    corner: str,
    caption: str,
) -> str:
    titles = "".join(
        f'<th scope="colgroup" role="columnheader" colspan="{len(columns)}"{_style(0)}>{escaped(group.title)}</th>'
        for group in groups
    )
    heads = "".join(
        f'<th scope="col" role="columnheader" class="num"{_style(i)}>{escaped(column)}</th>'
        for _ in groups
        for i, column in enumerate(columns)
    )
    body = "".join(
        f'<tr role="row"><th scope="row" role="rowheader">{escaped(row)}</th>'
        + "".join(_cell(group, row, column, ends, i) for group in groups for i, column in enumerate(columns))
        + "</tr>"
        for row in rows
    )
    return (
        f'<figure><div class="scroll"><table role="table" class="heat"><caption>{escaped(caption)}</caption>'
        f'<thead role="rowgroup"><tr role="row"><td role="cell"></td>{titles}</tr>'
        f'<tr role="row"><th scope="col" role="columnheader">{escaped(corner)}</th>{heads}</tr></thead>'
        f'<tbody role="rowgroup">{body}</tbody></table></div></figure>'
    )


def _style(place: int, *rules: str) -> str:
    parts = [*([_APART] if place == 0 else []), *rules]
    return f' style="{";".join(parts)}"' if parts else ""


def _cell(group: HeatGroup, row: str, column: str, ends: tuple[float, float], place: int) -> str:
    value = group.values.get((row, column))
    if value is None:
        note = group.notes.get((row, column), "not asked")
        return f'<td role="cell" class="num quiet"{_style(place)} title="{escaped(note)}">{ABSENT}</td>'
    low, high = ends
    share = (value - low) / (high - low) if high > low else 0.5
    shade = _SHADE.format(_FAINT + (_STRONG - _FAINT) * share)
    return f'<td role="cell" class="num"{_style(place, f"background:{shade}")}>{100 * value:.1f}</td>'
