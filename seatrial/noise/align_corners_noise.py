"""Align-corners noise: the deployed system puts the samples of an upsampled feature map elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final, get_args

from seatrial.core.alter_graph import with_edit
from seatrial.core.noise import System, SystemNoise
from seatrial.errors import unknown_name

Corners = Literal["flipped"]
ALIGN_CORNERS_OPTIONS: tuple[Corners, ...] = get_args(Corners)


@final
@dataclass(frozen=True, kw_only=True)
class AlignCornersNoise(SystemNoise):
    """Flip whether corners are aligned (`align_corners` of PyTorch) in all bilinear and bicubic upsampling.

    Raises BadInput for an option other than `flipped`. Departures: not in SysNoise.
    """

    option: Corners = "flipped"

    def __post_init__(self) -> None:
        if self.option not in ALIGN_CORNERS_OPTIONS:
            raise unknown_name("alignment of corners", self.option, ALIGN_CORNERS_OPTIONS)

    def alter(self, system: System) -> System:
        """Return the system with that edit of its graph; raises NoNoise where it has it."""
        return replace(system, graph=with_edit(system.graph, "align_corners"))
