"""Resize noise: the deployed system shrinks pictures with another library or filter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from seatrial.core.noise import System, SystemNoise
from seatrial.data.resize import INTERPOLATIONS
from seatrial.errors import NoNoise, NotApplicable, unknown_name

RESIZE_OPTIONS = tuple(f"{library}-{name}" for library, names in INTERPOLATIONS.items() for name in names)
"""The eleven resizes of SysNoise, table 1, as this noise names them."""


@final
@dataclass(frozen=True, kw_only=True)
class ResizeNoise(SystemNoise):
    """Resize with `option`, one of the eleven library-filter pairs (Wang et al. 2023, SysNoise, arXiv 2307.00280).

    Equal names differ between libraries: Pillow widens its filter when it shrinks a picture, OpenCV does not, but for
    area. Raises BadInput for an unknown option. Departures: none; a resize that is skipped because the pictures are
    already small shows only when pictures are compared (seatrial.noise.identity).
    """

    option: str

    def __post_init__(self) -> None:
        if self.option not in RESIZE_OPTIONS:
            raise unknown_name("resize", self.option, RESIZE_OPTIONS)

    def alter(self, system: System) -> System:
        """Return the system with that resize; raises NotApplicable without a resize, NoNoise where it is the same."""
        resize = system.pipeline.resize
        if resize is None or (resize.short_side_px is None and resize.exact_px is None):
            raise NotApplicable("the pipeline does not resize")
        if self.option == f"{resize.library}-{resize.interpolation}":
            raise NoNoise(f"the pipeline resizes with {self.option} already")
        library = next(name for name in INTERPOLATIONS if self.option.startswith(f"{name}-"))
        altered = replace(resize, library=library, interpolation=self.option.removeprefix(f"{library}-"))
        return replace(system, pipeline=replace(system.pipeline, resize=altered))
