"""What one subject answered on some batches, and how parts become a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import pyarrow as pa

from seatrial.bench.store import Status
from seatrial.core.noise import Access


@final
@dataclass(frozen=True, eq=False)
class Outcome:
    """Records by batch number, or why and at which batch there are none (`ended_at`)."""

    status: Status = "done"
    reason: str | None = None
    access: Access | None = None
    tables: Mapping[int, pa.Table] = field(default_factory=dict)
    bad: Mapping[str, str] = field(default_factory=dict)
    ended_at: int | None = None

    @property
    def table(self) -> pa.Table | None:
        """The records in order of batches; None where the cell has none."""
        if self.status != "done":
            return None
        return pa.concat_tables([self.tables[number] for number in sorted(self.tables)]) if self.tables else None


def merge(parts: Sequence[Outcome]) -> Outcome:
    """Return the outcome of all batches from those of shards, in any order.

    Law: equal to the outcome of one shard. Where a cell ended, the lowest batch number says why.
    """
    ended = [part for part in parts if part.ended_at is not None]
    if ended:
        return min(ended, key=lambda part: part.ended_at or 0)
    tables = {number: table for part in parts for number, table in part.tables.items()}
    bad = {name: why for part in parts for name, why in part.bad.items()}
    if not tables:
        first = f", first '{min(bad)}': {bad[min(bad)]}" if bad else ""
        return Outcome("failed", f"no sample could be loaded{first}", ended_at=0)
    return Outcome("done", None, parts[0].access, tables, bad)
