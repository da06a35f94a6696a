"""Bit-widths as users write them: `w8a8`, `w4`, `bf16`, `float32`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from seatrial.errors import BadInput

_PATTERN = re.compile(r"w([0-9]{1,2})a([0-9]{1,2})")
INTEGER_BITS = (2, 3, 4, 5, 6, 7, 8, 16)


@dataclass(frozen=True)
class Bits:
    """Bits of weights and activations of a variant; prints as `w8a8`."""

    weights: int
    activations: int

    def __str__(self) -> str:
        return f"w{self.weights}a{self.activations}"

    @staticmethod
    def parse(text: str) -> Bits:
        """Read `w8a8`; raises BadInput for anything that is not 2 to 8 or 16 bits."""
        match = _PATTERN.fullmatch(text.strip().lower())
        if match and {int(match[1]), int(match[2])} <= set(INTEGER_BITS):
            return Bits(int(match[1]), int(match[2]))
        raise BadInput(f"bit-widths '{text}'", "wNaM with N and M from 2 to 8, or 16", "write for example --bits w8a8")


@dataclass(frozen=True)
class WeightBits:
    """Bits of weights alone, activations stay float; prints as `w4`."""

    weights: int

    def __str__(self) -> str:
        return f"w{self.weights}"


def parse_bits(text: str) -> Bits | WeightBits:
    """Read `w8a8`, or `w4` for weights alone; raises BadInput for anything that is not 2 to 8 or 16 bits."""
    match = re.fullmatch(r"w([2-8])", text.strip().lower())
    return WeightBits(int(match[1])) if match else Bits.parse(text)


@dataclass(frozen=True)
class Precision:
    """What is asked of one site: how many bits, with a sign or not (None: decided by the observed range),
    around zero or not, and the axis of per-channel scales (None: one scale per tensor)."""

    bits: int
    signed: bool | None = None
    symmetric: bool = False
    axis: int | None = None
    narrow: bool = False
    """Leave out the lowest code (-127 to 127), as runtimes want it for weights."""
    float_type: str | None = None
    """`bf16` or `fp16`: run in that type instead of integers."""
    tie: str | None = None
    """Sites with the same tie get one common grid (the inputs of a concatenation)."""
    dynamic: bool = False
    """A grid for each token, from its own range at run time."""
    group: int | None = None
    """A grid for each run of so many values along the channels that are summed over (weights; dynamic activations)."""
