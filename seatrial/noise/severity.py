"""The five strengths of a corruption, and the pictures it acts on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from seatrial.errors import BadInput

T = TypeVar("T")


def at_severity(table: Sequence[T], severity: int) -> T:
    """Return the row of `table` for a severity of 1 to 5; raises BadInput for any other."""
    if isinstance(severity, bool) or severity not in range(1, len(table) + 1):
        raise BadInput(f"severity {severity!r}", f"a whole number from 1 to {len(table)}", "pick one of those")
    return table[int(severity) - 1]


def require_picture(picture: np.ndarray) -> None:
    """Raise BadInput unless `picture` is uint8 [height, width, 3] and not empty."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise BadInput(
            f"a {picture.dtype} array of shape {picture.shape}",
            "a uint8 RGB picture [height, width, 3]",
            "decode and convert it first",
        )
