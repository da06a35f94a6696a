"""Ceil mode: the deployed system rounds the sizes of its pools otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final, get_args

from seatrial.core.alter_graph import with_edit
from seatrial.core.noise import System, SystemNoise
from seatrial.errors import unknown_name

Rounding = Literal["ceil", "floor"]
CEIL_MODE_OPTIONS: tuple[Rounding, ...] = get_args(Rounding)


@final
@dataclass(frozen=True, kw_only=True)
class CeilModeNoise(SystemNoise):
    """Round the sizes of all max and average pools to `option`, ceil or floor.

    Raises BadInput for an unknown option. Source: Wang et al. 2023, SysNoise, arXiv 2307.00280, "ceil mode" and
    appendix A. Departures: floor is there for networks trained with ceil, such as SqueezeNet.
    """

    option: Rounding

    def __post_init__(self) -> None:
        if self.option not in CEIL_MODE_OPTIONS:
            raise unknown_name("ceil mode", self.option, CEIL_MODE_OPTIONS)

    def alter(self, system: System) -> System:
        """Return the system with that edit of its graph; raises NoNoise where it has it."""
        return replace(system, graph=with_edit(system.graph, f"{self.option}_mode"))
