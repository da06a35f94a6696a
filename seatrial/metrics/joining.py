"""Two tables of records, side by side: joined by sample id, never by position."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from seatrial.errors import BadInput


def column(records: pa.Table, name: str) -> np.ndarray:
    """Return one column [samples] as an array; raises BadInput where it is missing or has nulls."""
    if name not in records.column_names:
        raise BadInput(
            f"records without a column '{name}'", f"one of {records.column_names}", "evaluate this task again"
        )
    values = records.column(name)
    if values.null_count:
        raise BadInput(f"{values.null_count} empty entries in column '{name}'", "a value per sample", "evaluate again")
    return values.to_numpy()


def joined(first: pa.Table, second: pa.Table) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Return the rows of either table that belong to the samples they share, in order of sample id.

    Raises BadInput where a sample stands twice in a table, or where no sample is in both.
    """
    ids = [column(table, "sample").astype(str) for table in (first, second)]
    for table in ids:
        unique, counts = np.unique(table, return_counts=True)
        if len(unique) < len(table):
            raise BadInput(
                f"sample '{unique[counts.argmax()]}' stands {counts.max()} times in the records",
                "one record per sample",
                "join one cell at a time",
            )
    _, left, right = np.intersect1d(*ids, assume_unique=True, return_indices=True)
    if not len(left):
        raise BadInput("records without a sample in common", "two evaluations of the same data", "compare other runs")
    return left, right
