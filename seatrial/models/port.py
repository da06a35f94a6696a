"""What a deployed file says about its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Port:
    """One input or output: a dimension is a number, or None where it is dynamic.

    `scale` and `zero_point` are those of the file, if the port is quantized: value = scale * (code - zero_point).
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class Ports:
    """The ports of a checked file; `ends_in_softmax` says that the first output is probabilities, `widest_weight` is
    the largest absolute code among signed 8-bit weights (0 without any)."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    ends_in_softmax: bool = False
    widest_weight: int = 0


def widest_code(weights: bytes) -> int:
    """Return the largest absolute code of int8 weights."""
    codes = np.frombuffer(weights, np.int8)
    return max(int(codes.max(initial=0)), -int(codes.min(initial=0)))
