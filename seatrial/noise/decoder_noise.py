"""Decoder noise: the deployed system decodes pictures with another library, or with hurried choices of one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from seatrial.core.noise import System, SystemNoise
from seatrial.core.pipeline import Decoder
from seatrial.data.decode import DECODERS
from seatrial.data.decode_turbo import turbo_missing
from seatrial.errors import NoNoise, NotApplicable, unknown_name

DECODER_OPTIONS: tuple[Decoder, ...] = DECODERS


@final
@dataclass(frozen=True, kw_only=True)
class DecoderNoise(SystemNoise):
    """Decode with `option` (Wang et al. 2023, SysNoise, arXiv 2307.00280, decoder).

    pillow, opencv and pyav, which is FFmpeg, take every format. Of JPEG alone: turbo-fast-dct (libjpeg-turbo's fast
    inverse DCT), turbo-plain-chroma (its chroma repeated, not interpolated) and camera-yuv (planes of YUV, enlarged
    and converted as stated in seatrial.data.decode_camera). Raises BadInput for an unknown option. Departures: the
    last three are added and DALI, which needs a GPU, is left out; FFmpeg is called as a library, not as a process. Two
    libraries may decode equally, because both carry libjpeg-turbo: that shows when pictures are compared
    (seatrial.noise.identity).
    """

    option: Decoder

    def __post_init__(self) -> None:
        if self.option not in DECODER_OPTIONS:
            raise unknown_name("decoder", self.option, DECODER_OPTIONS)

    def alter(self, system: System) -> System:
        """Return the system with that decoder; raises NoNoise where it is the same, NotApplicable without its codec."""
        if system.pipeline.decoder == self.option:
            raise NoNoise(f"the pipeline decodes with {self.option} already")
        missing = turbo_missing() if self.option.startswith("turbo-") else None
        if missing is not None:
            raise NotApplicable(str(missing))
        return replace(system, pipeline=replace(system.pipeline, decoder=self.option))
