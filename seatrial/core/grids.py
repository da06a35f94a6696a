"""The grids that a round can put a tensor on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Affine:
    """A static integer grid: value = scale * (code - zero_point), codes of `bits` bits.

    `scale` float32 and `zero_point` int64 are scalars (axis None) or one value per channel along `axis`;
    `narrow` leaves out the lowest code.
    """

    bits: int
    signed: bool
    scale: Tensor
    zero_point: Tensor
    axis: int | None = None
    narrow: bool = False

    @property
    def codes(self) -> tuple[int, int]:
        """The lowest and highest code."""
        return codes_of(self.bits, self.signed, narrow=self.narrow)


def codes_of(bits: int, signed: bool, *, narrow: bool = False) -> tuple[int, int]:
    """Return the lowest and highest code of so many bits; `narrow` leaves out the lowest of signed ones."""
    if not signed:
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)) + int(narrow), 2 ** (bits - 1) - 1


@dataclass(frozen=True)
class FloatType:
    """A narrower float type, `bf16` or `fp16`: run this operator so."""

    kind: str


@dataclass(frozen=True)
class Dynamic:
    """An affine grid for each row of the last axis (a token's channels), from that row's range when it is there.

    With `group`, for each run of so many values of a row (the last may be shorter). `symmetric`: signed around zero,
    without the lowest code; else unsigned with a zero point, from the range widened to hold zero.
    Source: Yao et al. 2022 (ZeroQuant), section 4.1, for tokens.
    """

    bits: int
    symmetric: bool = False
    group: int | None = None


@dataclass(frozen=True, eq=False)
class Grouped:
    """A static affine grid for each run of `group` values of a weight's rows: unsigned codes of `bits` bits.

    `scale` float32 and `zero_point` int64 are [rows, groups]; the last group may be shorter.
    """

    bits: int
    scale: Tensor
    zero_point: Tensor
    group: int


@dataclass(frozen=True, eq=False)
class Logarithmic:
    """Powers of 2 ** (1 / steps): value = scale * 2 ** (-code / steps) for codes below 2 ** bits, beyond them 0.

    For values from 0 to `scale`, a scalar. Source: Li et al. 2023 (RepQ-ViT), eq. 9 to 12, with 2 steps.
    """

    bits: int
    scale: Tensor
    steps: int = 1


@dataclass(frozen=True, eq=False)
class Twin:
    """Two uniform grids of half the codes each, of steps `fine` and `coarse` (scalars).

    `by_sign`: negative values on `fine`, others on `coarse`. Else, for values from 0 up: those below
    fine * (2 ** (bits - 1) - 1) on `fine`, others on `coarse`. Source: Yuan et al. 2022 (PTQ4ViT), section 3.2.
    """

    bits: int
    fine: Tensor
    coarse: Tensor
    by_sign: bool = False


Grid = Affine | FloatType | Dynamic | Grouped | Logarithmic | Twin
