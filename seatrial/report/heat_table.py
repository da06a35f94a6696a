"""A table of shares whose cells are shaded by their value: a heat map that can be read, copied and printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seatrial.report.markup import escaped

_SHADE = "rgba(26,127,196,{:.2f})"


def heat_table(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[str, str], float | None],
    *,
    corner: str,
    caption: str,
    notes: Mapping[tuple[str, str], str] | None = None,
) -> str:
    """Return HTML: `values` are fractions by (row, column), shown in percent, darker the higher among those shown.

    A cell without a value shows a dash with its note (plain text) as its title.
    """
    known = [value for value in values.values() if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    spread = max(high - low, 1e-9)
    body = []
    for row in rows:
        cells = []
        for column in columns:
            value, note = values.get((row, column)), (notes or {}).get((row, column), "not asked")
            if value is None:
                cells.append(f'<td role="cell" class="num quiet" title="{escaped(note)}">–</td>')
                continue
            shade = _SHADE.format(0.04 + 0.5 * (value - low) / spread)
            cells.append(f'<td role="cell" class="num" style="background:{shade}">{100 * value:.1f}</td>')
        body.append(f'<tr role="row"><th scope="row" role="rowheader">{escaped(row)}</th>{"".join(cells)}</tr>')
    heads = "".join(
        f'<th scope="col" role="columnheader"{"" if i == 0 else " class=num"}>{escaped(text)}</th>'
        for i, text in enumerate((corner, *columns))
    )
    return (
        f'<div class="scroll"><table role="table" class="heat"><caption>{escaped(caption)}</caption>'
        f'<thead role="rowgroup"><tr role="row">{heads}</tr></thead><tbody role="rowgroup">{"".join(body)}</tbody>'
        "</table></div>"
    )
