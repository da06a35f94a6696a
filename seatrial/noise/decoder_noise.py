"""Decoder noise: the deployed system decodes pictures with another library."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from seatrial.core.noise import System, SystemNoise
from seatrial.core.pipeline import Decoder
from seatrial.errors import NoNoise, unknown_name

DECODER_OPTIONS: tuple[Decoder, ...] = ("pillow", "opencv", "pyav")


@final
@dataclass(frozen=True, kw_only=True)
class DecoderNoise(SystemNoise):
    """Decode with `option`: pillow, opencv or pyav, which is FFmpeg (Wang et al. 2023, SysNoise, arXiv 2307.00280).

    Raises BadInput for an unknown option. Departures: FFmpeg is called as a library, not as a process. Two libraries
    may decode equally, because both carry libjpeg-turbo: that shows when pictures are compared
    (seatrial.noise.identity).
    """

    option: Decoder

    def __post_init__(self) -> None:
        if self.option not in DECODER_OPTIONS:
            raise unknown_name("decoder", self.option, DECODER_OPTIONS)

    def alter(self, system: System) -> System:
        """Return the system with that decoder; raises NoNoise where it is the same."""
        if system.pipeline.decoder == self.option:
            raise NoNoise(f"the pipeline decodes with {self.option} already")
        return replace(system, pipeline=replace(system.pipeline, decoder=self.option))
