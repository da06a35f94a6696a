"""Color noise: the deployed system's pictures go through YUV."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from seatrial.core.noise import System, SystemNoise
from seatrial.core.pipeline import Color
from seatrial.data.color import COLORS
from seatrial.errors import NoNoise, unknown_name

COLOR_OPTIONS: tuple[Color, ...] = tuple(color for color in COLORS if color != "rgb")


@final
@dataclass(frozen=True, kw_only=True)
class ColorNoise(SystemNoise):
    """Convert decoded pictures to YUV and back (Wang et al. 2023, SysNoise, arXiv 2307.00280, color space).

    `yuv444` keeps chroma for every pixel, `nv12` one for 2x2; `exact` and `integer` are the paper's formulas back to
    RGB (appendix A). Raises BadInput for an unknown option. Departures: the paper's pictures went through one Ascend
    card; here place and filter of chroma are stated (seatrial.data.color), so that any machine gives the same.
    """

    option: Color

    def __post_init__(self) -> None:
        if self.option not in COLOR_OPTIONS:
            raise unknown_name("color", self.option, COLOR_OPTIONS)

    def alter(self, system: System) -> System:
        """Return the system with that conversion; raises NoNoise where it is the same."""
        if system.pipeline.color == self.option:
            raise NoNoise(f"the pipeline goes through {self.option} already")
        return replace(system, pipeline=replace(system.pipeline, color=self.option))
