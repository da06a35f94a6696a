"""Box offset: the deployed system counts the pixels of a box otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final, get_args

from seatrial.core.noise import System, SystemNoise
from seatrial.errors import NoNoise, unknown_name

Where = Literal["decode", "everywhere"]
BOX_OFFSET_OPTIONS: tuple[Where, ...] = get_args(Where)


@final
@dataclass(frozen=True, kw_only=True)
class BoxOffsetNoise(SystemNoise):
    """Take the far corner of a box for its last pixel: in the decoding alone (`decode`), or `everywhere`.

    Everywhere is in overlaps and areas too. Raises BadInput for an unknown option. Source: Wang et al. 2023, SysNoise,
    arXiv 2307.00280, "detection proposal" and appendix A, offset 1. Departures: `everywhere`, what the switch of its
    official code does, is a noise of its own.
    """

    option: Where

    def __post_init__(self) -> None:
        if self.option not in BOX_OFFSET_OPTIONS:
            raise unknown_name("box offset", self.option, BOX_OFFSET_OPTIONS)

    def alter(self, system: System) -> System:
        """Return the system that decodes boxes so; raises NoNoise where it does already."""
        if system.boxes == self.option:
            raise NoNoise(f"boxes are decoded with the offset ({self.option}) already")
        return replace(system, boxes=self.option)
