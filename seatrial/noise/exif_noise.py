"""EXIF noise: the deployed system does not turn pictures upright."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final, get_args

from seatrial.core.noise import System, SystemNoise
from seatrial.errors import NoNoise, unknown_name

Exif = Literal["ignored"]
EXIF_OPTIONS: tuple[Exif, ...] = get_args(Exif)


@final
@dataclass(frozen=True, kw_only=True)
class ExifNoise(SystemNoise):
    """Leave pictures as they are stored, whatever orientation their EXIF states (tag 0x0112, EXIF 2.32).

    Raises BadInput for an unknown option. Departures: not in SysNoise. Files without the tag stay as they are, which
    shows only when pictures are compared (seatrial.noise.identity).
    """

    option: Exif

    def __post_init__(self) -> None:
        if self.option not in EXIF_OPTIONS:
            raise unknown_name("use of EXIF", self.option, EXIF_OPTIONS)

    def alter(self, system: System) -> System:
        """Return the system that ignores EXIF; raises NoNoise where it does so already."""
        if not system.pipeline.exif:
            raise NoNoise("the pipeline ignores EXIF already")
        return replace(system, pipeline=replace(system.pipeline, exif=False))
