"""What one subject answered on some batches, and how parts become a whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, final

import pyarrow as pa

from seatrial.bench.store import Status
from seatrial.core.noise import Access
from seatrial.errors import NoNoise, NotApplicable, SeatrialError

T = TypeVar("T")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")


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


def attempt(work: Callable[[], T], number: int) -> T | Outcome:
    """Return what `work` returns, or the outcome that its failure means for the cells that wait for it.

    Broad on purpose: a runtime may raise anything, and one cell that fails must not end a sweep of hundreds. Nothing
    is swallowed: the failure is the cell's status and reason. What the user has to mend (BadInput) goes through.
    """
    try:
        return work()
    except NotApplicable as error:
        return Outcome("not-applicable", _said(error), ended_at=number)
    except NoNoise as error:
        return Outcome("no-noise", _said(error), ended_at=number)
    except SeatrialError:
        raise
    except Exception as error:
        return Outcome("failed", f"{type(error).__name__}: {_said(error)}", ended_at=number)


def _said(error: Exception) -> str:
    # Addresses differ from run to run, and a cell's bytes must not.
    return _ADDRESS.sub("0x...", " ".join(str(error).split()))[:500]
