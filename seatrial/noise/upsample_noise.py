"""Upsample noise: the deployed system enlarges feature maps by another interpolation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final, get_args

from seatrial.core.alter_graph import with_edit
from seatrial.core.noise import System, SystemNoise
from seatrial.errors import unknown_name

Interpolation = Literal["nearest", "bilinear"]
UPSAMPLE_OPTIONS: tuple[Interpolation, ...] = get_args(Interpolation)


@final
@dataclass(frozen=True, kw_only=True)
class UpsampleNoise(SystemNoise):
    """Upsample feature maps by `option`, nearest or bilinear, where the network does by the other.

    Raises BadInput for an unknown option. Source: Wang et al. 2023, SysNoise, arXiv 2307.00280, "upsample".
    Departures: nearest is there for networks trained with bilinear; bicubic upsampling stays as it is.
    """

    option: Interpolation

    def __post_init__(self) -> None:
        if self.option not in UPSAMPLE_OPTIONS:
            raise unknown_name("upsampling", self.option, UPSAMPLE_OPTIONS)

    def alter(self, system: System) -> System:
        """Return the system with that edit of its graph; raises NoNoise where it has it."""
        return replace(system, graph=with_edit(system.graph, f"upsample:{self.option}"))
